"""Pictures and HTML: what a run left behind, as one page that needs nothing else.

Pure: dictionaries in, markup out. Nothing here knows Ray, torch or where the numbers come from.
"""

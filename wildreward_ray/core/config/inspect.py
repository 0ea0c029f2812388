"""Settings of `wildreward inspect`."""

from __future__ import annotations

from pydantic import Field

from wildreward_ray.core.config.base import Section


class InspectConfig(Section):
    """A page that shows what an extraction labelled, and what is wrong with it."""

    uri: str = Field(description="directory or URI that extract wrote")
    output: str = Field("inspect.html", description="file the page is written to; replaced if it is there")
    limit: int = Field(
        2000,
        ge=1,
        le=10_000,
        description="most interactions the page holds to browse; its statistics are over all rows",
    )

"""Ray and I/O plumbing: sessions and resources, storage, engines, the reward client."""

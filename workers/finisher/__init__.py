"""The finisher stage: frames to an MP4 and a thumbnail."""

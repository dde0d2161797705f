"""The stream-processing runtime: a pure core, one loop, thin edges."""

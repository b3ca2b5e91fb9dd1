"""The families that we know: a file each, or one for several that are alike. Every file here is found by itself."""

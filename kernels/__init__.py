"""Operations, a folder each: the plain PyTorch reference, the Triton kernel, one API."""

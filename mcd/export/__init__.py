"""A depth net as a file for other programs: ONNX, PyTorch's exported program, AOTInductor's package."""

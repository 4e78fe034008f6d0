"""ONNX's own backend test suite as a judge: every case through every form of the exact passes, outputs compared."""

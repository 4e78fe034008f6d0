"""Distillation of a rewritten graph against the original, from the files and unlabelled inputs alone.

The student is an ONNX graph that ``graphopt.autograd`` executes; the teacher answers in ONNX Runtime, once.
Importing this package brings in no torch.
"""

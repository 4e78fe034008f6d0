"""Ops that deliberately freeze every axis they touch, each with the reason. What is not here has a rule, or is unknown.

A test holds this table and the rules against all schemas of ai.onnx and com.microsoft that are installed.
"""

from __future__ import annotations

from graphopt.analysis.rules.context import MICROSOFT

#: Whole domains of classical models: trees, tables and scalers over features that an input dictates.
MIXED_DOMAINS = {"ai.onnx.ml": "Classical models tell features apart by their number, and keep them in attributes."}

_STANDARD: dict[str, str] = {
    "Members are told apart by their position, and made from it.": (
        "BlackmanWindow EyeLike HammingWindow HannWindow MelWeightMatrix Multinomial RandomNormal RandomUniform Range"
    ),
    "Every result is a sum over all samples with fixed coefficients.": "DFT STFT",
    "How many members there are, and which, depends on the data.": "NonMaxSuppression NonZero Unique",
    "The determinant depends on every row and column.": "Det",
    "Its contents lie in an attribute, which is not sliced.": "Constant GivenTensorFill",
    "Tensors in a sequence may differ in every axis, and are picked by number.": (
        "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
        "SequenceMap"
    ),
    "Whether there is a tensor at all depends on the data.": "Optional OptionalGetElement OptionalHasElement",
    "Strings hold no numbers to remove.": (
        "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer ImageDecoder"
    ),
    "A loss compares classes with labels that number them.": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "Elements are placed by index, into caches that the caller keeps.": "TensorScatter",
    "Its state is handed over by the caller, with the widths that it was trained with.": (
        "CausalConvWithState LinearAttention"
    ),
    "Windows are cut, shifted or added up by sizes in an operand.": "CenterCropPad Col2Im DeformConv",
    "It was an experiment that ONNX gave up, with its sizes in attributes.": ("Crop DynamicSlice GRUUnit ImageScaler"),
    "It is a plug-in of TensorRT, which cannot be run to check a removal.": (
        "DisentangledAttention_TRT EfficientNMS_TRT MultilevelCropAndResize_TRT PyramidROIAlign_TRT"
    ),
}

_MICROSOFT: dict[str, str] = {
    "Members are told apart by their position, and made from it.": "Range",
    "Every result is a sum over all samples with fixed coefficients.": "Irfft Rfft",
    "How many members there are, and which, depends on the data.": "Unique SparseToDenseMatMul",
    "An inverse or a distance depends on every row and column.": "CDist Inverse",
    "Real and imaginary parts lie next to each other.": "ComplexMul ComplexMulConj",
    "Whole decoders run inside, with vocabularies and caches that are numbered.": (
        "BeamSearch GreedySearch Sampling WhisperBeamSearch"
    ),
    "Tokens are numbered.": (
        "BifurcationDetector EngramGate MurmurHash3 NGramHashMapping NGramRepeatBlock SpeculativePrefixCommit "
        "Tokenizer VarlenNGramHashMapping WordConvEmbedding"
    ),
    "Positions are matched or cut into windows.": "DynamicTimeWarping UnfoldTensor",
    "All elements are looked at together.": "IsAllFinite SampleOp",
    "Weights are packed in blocks, by a layout that is not that of a tensor.": (
        "DequantizeBFP GatherPacked GemmFloat8 MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight MatMulFpQ4 "
        "MatMulBnb4 MatMulNBitsMlp MatMulNBitsQLoRA MatMulNBitsQkv MatMulPacked MoEPacked QuantizeBFP"
    ),
    "Elements lie in the order that a CUDA kernel wants them in.": (
        "DequantizeWithOrder QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention "
        "QOrderedMatMul QuantizeWithOrder"
    ),
    "It runs on CUDA alone, where no removal has been checked.": (
        "DecoderAttention DynamicSparseAttention GatedRelativePositionBias GemmaRotaryEmbedding LongformerAttention "
        "PackedAttention PackedMultiHeadAttention PackedSparseAttentionIndexer PackedSparseAttentionIndexerMerge "
        "PagedAttention RMSNormRotary SparseAttentionIndexer SparsePagedAttention"
    ),
    "Its block mask or its caches are laid out by head.": (
        "DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention MRotaryEmbedding SparseAttention"
    ),
    "Its state is handed over by the caller, with the widths that it was trained with.": (
        "AttnLSTM CausalConvWithState ConvStateReplay GatedDeltaNet GatedDeltaNetStateReplay LinearAttention "
        "LinearAttentionGate Mamba2Verify VarlenCausalConvWithState"
    ),
    "Streams or branches are mixed with one another.": (
        "BranchwiseRMSNorm HyperConnectionLowRankMix HyperConnectionPostMix HyperConnectionPreMix"
    ),
    "Tokens are routed by scores over all experts.": "MoEGroupRouter RouterGateUpProj",
    "A gate is normalised or shared over the whole width.": "GatedAdd GatedRMSNorm",
    "Its integers are summed without a scale of their own.": "MulInteger ReduceSumInteger",
    "Its mask spans whole images.": "MaxpoolWithMask",
    "Packed operands share scales over the whole width.": "QAttention QEmbedLayerNormalization",
    "Its mask is packed into bits.": "BitmaskBiasDropout BitmaskDropout",
    "It holds a compiled model.": "EPContext Snpe",
}


def _by_op(domain: str, table: dict[str, str]) -> dict[tuple[str, str], str]:
    return {(domain, op_type): reason for reason, names in table.items() for op_type in names.split()}


#: ``(domain, op_type)`` -> why the op freezes what it touches.
MIXED: dict[tuple[str, str], str] = {**_by_op("", _STANDARD), **_by_op(MICROSOFT, _MICROSOFT)}


def mixed_reason(domain: str, op_type: str) -> str | None:
    """Why an op freezes what it touches; None for one that has a rule, or that nobody knows."""
    return MIXED.get((domain, op_type)) or MIXED_DOMAINS.get(domain)

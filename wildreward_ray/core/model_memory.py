"""What models of known shape need of a GPU's memory, worked out and not measured. Bytes; 1 GB is 10^9 of them.

Counted are weights, gradients, Adam's moments, what the backward pass keeps, and the KV cache. Not counted are the CUDA context,
the allocator's fragments and a library's workspaces: some GB a GPU that should stay free.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9
_FLOAT32, _BFLOAT16 = 4, 2


@dataclass(frozen=True)
class Shape:
    """A transformer's measures, as its `config.json` has them.

    Attributes:
        parameters: all of them, the language model's head included where the checkpoint has one.
        layers, hidden, intermediate: numbers of layers, and widths.
        heads, kv_heads, head_dim: of attention.
        vocabulary: rows of the embedding.
        own_head: whether the head has weights of its own, which a classifier of this shape doesn't.
        source: where the figures are published.
        weights_bytes: of the weights as an engine holds them, where they are quantised; None: 2 a parameter.
        dense: whether every token passes every weight; training of others is not estimated.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    own_head: bool
    source: str
    weights_bytes: int | None = None
    dense: bool = True

    @property
    def classifier_parameters(self) -> int:
        """Parameters without the language model's head; a reward model's own head is a few thousand."""
        return self.parameters - (self.vocabulary * self.hidden if self.own_head else 0)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        return (self.classifier_parameters - self.vocabulary * self.hidden) // self.layers

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache a token, in bfloat16, were no layer's attention windowed."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _BFLOAT16

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of LoRA adapters on all linear layers (arXiv 2106.09685): rank * (inputs + outputs) of each."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + query) + 2 * (self.hidden + key)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


_QWEN3_4B = Shape(
    4_022_468_096,
    36,
    2560,
    9728,
    32,
    8,
    128,
    151_936,
    False,
    "https://huggingface.co/Qwen/Qwen3-4B/blob/main/config.json",
)
_SMOLLM2 = Shape(
    134_515_008,
    30,
    576,
    1536,
    9,
    3,
    64,
    49_152,
    False,
    "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/blob/main/config.json",
)
_MINILM = Shape(
    22_713_216,
    6,
    384,
    1536,
    12,
    12,
    32,
    30_522,
    False,
    "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/blob/main/config.json",
)
# Models that the shipped configurations name.
MODELS = {
    "Qwen/Qwen3-1.7B": Shape(
        1_720_574_976,
        28,
        2048,
        6144,
        16,
        8,
        128,
        151_936,
        False,
        "https://huggingface.co/Qwen/Qwen3-1.7B/blob/main/config.json",
    ),
    "Qwen/Qwen3-4B": _QWEN3_4B,
    "Qwen/Qwen3-4B-Instruct-2507": _QWEN3_4B,
    "Qwen/Qwen3-8B": Shape(
        8_190_735_360,
        36,
        4096,
        12_288,
        32,
        8,
        128,
        151_936,
        True,
        "https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json",
    ),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(
        8_030_261_248,
        32,
        4096,
        14_336,
        32,
        8,
        128,
        128_256,
        True,
        "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/blob/main/config.json",
    ),
    # 116.83e9 parameters, 5.13e9 of them for each token, in 60.8 GiB, most of them MXFP4: model card, table 1. Every second
    # layer looks at 128 tokens only; the KV cache is counted as if none did.
    "openai/gpt-oss-120b": Shape(
        116_830_000_000,
        36,
        2880,
        2880,
        64,
        8,
        64,
        201_088,
        True,
        "https://arxiv.org/abs/2508.10925",
        weights_bytes=65_283_502_899,
        dense=False,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2,
    "demo:smollm2": _SMOLLM2,
    "sentence-transformers/all-MiniLM-L6-v2": _MINILM,
    "demo:minilm": _MINILM,
}


@dataclass(frozen=True)
class Memory:
    """Memory of one GPU.

    Attributes:
        parts: (what, bytes), which are held at the same time.
        loading: bytes held while the model is loaded, before it is sharded; 0 where that is no more.
    """

    parts: tuple[tuple[str, int], ...]
    loading: int = 0

    @property
    def total(self) -> int:
        """The most that is held at a time, in bytes."""
        return max(sum(size for _, size in self.parts), self.loading)


def engine_memory(
    shape: Shape, *, length: int, parallel: int = 1, float32: bool = False, classifier: bool = False
) -> Memory:
    """The least a vLLM engine needs of each of its GPUs: its weights, and the KV cache of one sequence.

    Args:
        length: of that sequence, in tokens. vLLM refuses to start where it has no room for it.
        parallel: GPUs that weights and heads are divided among.
        float32: weights and cache of 4 bytes a number; quantised weights stay as they are.
        classifier: the model has no language model's head.
    """
    width = _FLOAT32 if float32 else _BFLOAT16
    weights = shape.weights_bytes or width * (shape.classifier_parameters if classifier else shape.parameters)
    cache = shape.kv_bytes * width // _BFLOAT16 * length
    return Memory((("weights", weights // parallel), (f"KV cache of {length:,} tokens", cache // parallel)))


@dataclass(frozen=True)
class Training:
    """How a model is trained, as far as memory goes.

    Attributes:
        tokens: padded tokens of a micro-batch.
        workers: GPUs.
        sharded: FSDP2; false: every worker holds all.
        bfloat16: type of activations; weights, gradients and moments are float32.
        recompute: whether activations of layers are computed again in the backward pass.
        rank: of LoRA adapters; 0: all weights are trained.
        logits: positions of a micro-batch whose logits over the vocabulary are computed; 0 for a reward model.
    """

    tokens: int
    workers: int = 1
    sharded: bool = False
    bfloat16: bool = True
    recompute: bool = False
    rank: int = 0
    logits: int = 0


def training_memory(shape: Shape, how: Training) -> Memory | None:
    """What training needs of each GPU; None for a model that is not dense.

    A language model (`how.logits`) learns by DPO: without adapters it has a frozen copy beside it. Activations are what a pre-norm
    layer with a gated MLP keeps in PyTorch, attention without its matrix: an upper bound by count, see `_activations`.
    """
    if not shape.dense:
        return None
    count = shape.parameters if how.logits else shape.classifier_parameters
    share = how.workers if how.sharded else 1
    trained = shape.adapter_parameters(how.rank) if how.rank else count
    half = how.rank and how.bfloat16 and not how.sharded  # FSDP2 wants one type for all weights of a layer
    frozen = (_BFLOAT16 if half else _FLOAT32) * count if how.rank or how.logits else 0
    parts = [("weights, gradients and two moments", 16 * trained // share)]
    parts += [("frozen weights", frozen // share)] if frozen else []
    width = _BFLOAT16 if how.bfloat16 else _FLOAT32
    if how.sharded:
        root = (2 if how.logits and shape.own_head else 1) * shape.vocabulary * shape.hidden
        largest = max(root, shape.layer_parameters)
        parts.append(("gathered weights", width * (root + 2 * shape.layer_parameters) + _FLOAT32 * largest))
    elif how.bfloat16 and not half:
        parts.append(("weights cast to bfloat16", _BFLOAT16 * count))
    parts.append(("activations, at most", _activations(shape, how, width)))
    if how.logits:
        parts.append(("logits, their softmax and gradient", 3 * _FLOAT32 * how.logits * shape.vocabulary))
    # Each worker moves whole float32 weights to its device before they are sharded: first the frozen copy's, then its own.
    loading = _FLOAT32 * count + (frozen // share if how.logits and not how.rank else 0) if how.sharded else 0
    return Memory(tuple(parts), loading)


def _activations(shape: Shape, how: Training, width: int) -> int:
    """Bytes that a micro-batch leaves for the backward pass.

    In units of `width` a layer keeps of each token: its two residual inputs and two normed ones, and the norms' float32 copies
    (together 12 hidden); queries, keys and values before and after norm and rotation, and attention's output (7 of the queries'
    width, 8 of the keys'); the MLP's gate, up, activation and product (4 intermediate).
    """
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = width * how.tokens * (12 * shape.hidden + 7 * query + 8 * key + 4 * shape.intermediate)
    kept = width * how.tokens * shape.hidden
    return shape.layers * kept + layer if how.recompute else shape.layers * layer

"""Reward models of others: any `AutoModelForSequenceClassification` checkpoint with one logit or two.

One logit is the score. Of two, the score is the logit of the good class minus that of the other, which orders responses as the
probability of the good class does. Which class is good is read from `id2label` (`GOOD_LABELS`, `BAD_LABELS`); labels that say
nothing leave it at index 1, as classifiers of two classes have it.

The input is what `tokenizer.apply_chat_template` makes of the conversation, without a generation prompt, or what a template
file makes of it, or, where the tokenizer has no chat template, the pair (all before the response, response).
An end of the input that is the model's own padding token is left out: transformers' decoders read the rightmost token that is
something else. Nothing else is taken for padding, so that a score is that of the plain model with one input at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.reward.batching import token_batches
from wildreward_ray.reward.engine import pad_right
from wildreward_ray.reward.foreign_inputs import ForeignEncoder
from wildreward_ray.reward.model import read_template
from wildreward_ray.reward.pretrained import (
    HEAD,
    check_classifier,
    check_max_length,
    has_head,
    load_config,
    load_tokenizer,
    load_weights,
    local_or_hub,
    max_positions,
    torch_dtype,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["scalar", "two-class"]
KindChoice = Literal["auto", "scalar", "two-class"]
GOOD_LABELS = frozenset({"positive", "pos", "good", "chosen", "accepted", "preferred", "label_1"})
BAD_LABELS = frozenset({"negative", "neg", "bad", "rejected", "dispreferred", "label_0"})
# Models that read 100,000 tokens would have an engine reserve memory for them; no benchmark has inputs as long as this.
_LONGEST = 16_384
_LOGITS: dict[str, int] = {"scalar": 1, "two-class": 2}


@dataclass(frozen=True)
class ForeignInputs:
    """Everything about a foreign reward model but its weights.

    Attributes:
        kind: how its logits are read.
        positive: index of the good class; 0 for one logit.
        label: what the checkpoint calls that class.
        tokenizer: its tokenizer.
        encoder: makes its inputs.
        vocabulary: number of token ids that the model knows.
    """

    kind: Kind
    positive: int
    label: str
    tokenizer: PreTrainedTokenizerBase
    encoder: ForeignEncoder
    vocabulary: int


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A foreign reward model ready to score.

    Attributes:
        model: sequence classifier with one logit or two, in eval mode, on the CPU.
        inputs: how its inputs are made and its logits read.
    """

    model: PreTrainedModel
    inputs: ForeignInputs


def load_foreign_inputs(
    path: str,
    *,
    kind: KindChoice = "auto",
    template_file: str | None = None,
    trust_remote_code: bool = False,
    max_length: int | None = None,
) -> ForeignInputs:
    """Read configuration and tokenizer of a foreign reward model.

    Args:
        path: local directory or Hugging Face name.
        kind: what the number of logits has to fit; `auto`: it decides.
        template_file: Jinja file with `history`, `prompt` and `response`, in place of the tokenizer's chat template.
        max_length: longest input in tokens; default: what the model reads, at most 16,384.

    Raises:
        UserError: the checkpoint is missing or no sequence classifier; it has another number of logits; the length
            exceeds what the model reads; there is no template and the tokenizer can't tell a response from what is before it.
    """
    name = local_or_hub(path, "--model")
    hf_config = load_config(name, "--model", trust_remote_code)
    if not has_head(hf_config) and not trust_remote_code:
        raise UserError(
            f"{path!r} is a {', '.join(hf_config.architectures or ['model without architecture'])}, not a reward model",
            flag="--model",
            hint=f"a reward model is a ...{HEAD} checkpoint",
        )
    check_classifier(hf_config, path, "--model")
    found = kind_of(hf_config, path, kind)
    length = max_length or min(max_positions(hf_config) or _LONGEST, _LONGEST)
    check_max_length(hf_config, length)
    tokenizer = load_tokenizer(name, "--model", trust_remote_code)
    text_config = hf_config.get_text_config()
    encoder = ForeignEncoder(
        tokenizer,
        max_length=length,
        template=None if template_file is None else RewardTemplate(read_template(template_file)),
        ignored_end=text_config.pad_token_id,
        # A tokenizer that leaves them out of its inputs leaves all tokens of one type, in training too.
        with_types=getattr(text_config, "type_vocab_size", 0) > 1 and "token_type_ids" in tokenizer.model_input_names,
    )
    positive = 0 if found == "scalar" else positive_class(hf_config.id2label)
    label = str(hf_config.id2label.get(positive, positive))
    return ForeignInputs(found, positive, label, tokenizer, encoder, int(getattr(text_config, "vocab_size", 0)))


def load_foreign(
    path: str, inputs: ForeignInputs, *, dtype: str = "float32", trust_remote_code: bool = False
) -> ForeignCheckpoint:
    """Load a foreign reward model for scoring, in eval mode on the CPU.

    Args:
        path: local directory or Hugging Face name.
        inputs: what `load_foreign_inputs` says of it.
        dtype: one of `pretrained.DTYPES`.

    Raises:
        UserError: the weights can't be loaded or lack something, e.g. the head; such a model would score at random.
    """
    model, info = load_weights(
        local_or_hub(path, "--model"), "--model", dtype=torch_dtype(dtype), trust_remote_code=trust_remote_code
    )
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{path!r} lacks the weights {', '.join(missing[:3])}{more}", flag="--model")
    model.eval()
    return ForeignCheckpoint(model, inputs)


def kind_of(hf_config: PretrainedConfig, path: str, wanted: KindChoice) -> Kind:
    """How the logits of a checkpoint are read, by their number.

    Raises:
        UserError: there are neither one nor two, or not those that `wanted` needs.
    """
    logits = int(hf_config.num_labels)
    if wanted != "auto" and logits != _LOGITS[wanted]:
        raise UserError(f"{path!r} has {logits} logits, {wanted} is {_LOGITS[wanted]}", flag="--model-kind")
    if logits == 1:
        return "scalar"
    if logits == 2:
        return "two-class"
    raise UserError(
        f"{path!r} has {logits} logits: one or two can be read as a score",
        flag="--levels --model-kind",
        hint=f"if they are thresholds between ordered levels, give --levels {logits + 1} and --template",
    )


def positive_class(id2label: dict[int, str]) -> int:
    """Which of two classes is the good one: the one with a good name, else the one beside a bad name, else index 1."""
    names = [str(id2label.get(index, "")).strip().lower() for index in (0, 1)]
    for known, other in ((GOOD_LABELS, False), (BAD_LABELS, True)):
        hits = [index for index, name in enumerate(names) if name in known]
        if len(hits) == 1:
            return 1 - hits[0] if other else hits[0]
    return 1


def scores_of(logits: NDArray[np.float32], kind: Kind, positive: int) -> NDArray[np.float64]:
    """Scores [N] of logits [N, 1 or 2]; any real number. A NaN or infinite logit gives a score that isn't finite."""
    wide = logits.astype(np.float64)
    if kind == "scalar":
        return wide[:, 0]
    with np.errstate(invalid="ignore"):
        difference: NDArray[np.float64] = wide[:, positive] - wide[:, 1 - positive]
    return difference


class ForeignScorer:
    """Runs a foreign reward model over encoded inputs with transformers.

    Args:
        checkpoint: the model, which moves to `device`.
        device: a torch device, or `auto` for CUDA where there is one and the CPU otherwise.
        token_budget: padded tokens of one forward pass.

    Raises:
        UserError: the device does not exist here.
    """

    def __init__(self, checkpoint: ForeignCheckpoint, *, device: str = "auto", token_budget: int = 8192) -> None:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            self.device = torch.device(name)
            self.model = checkpoint.model.to(self.device).eval()
        except (RuntimeError, AssertionError) as e:
            raise UserError(f"device {name!r} can't be used: {str(e).splitlines()[0]}", flag="--device") from e
        self._inputs, self._token_budget = checkpoint.inputs, token_budget

    def logits(self, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits of inputs as `ForeignEncoder` makes them, in order: [N, 1 or 2] float32. Not checked for NaN here.

        Raises:
            UserError: the model, which may be code of its own, gives logits of another shape.
        """
        width = _LOGITS[self._inputs.kind]
        result = np.full((len(inputs), width), np.nan, dtype=np.float32)
        lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
        for rows in token_batches(np.arange(len(inputs), dtype=np.int64), lengths, self._token_budget):
            found = self._forward([inputs[row] for row in rows])
            if found.shape != (len(rows), width):
                raise UserError(f"logits of shape {found.shape}, not {(len(rows), width)}", flag="--model")
            result[rows] = found
        return result

    @torch.inference_mode()
    def _forward(self, batch: list[Sequence[int]]) -> NDArray[np.float32]:
        pad = self._padding(batch)
        for config in (self.model.config, self.model.config.get_text_config()):
            config.pad_token_id = pad
        input_ids, attention_mask = pad_right(batch, pad)
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask}
        types = [self._inputs.encoder.token_types(ids) for ids in batch]
        if types[0] is not None:
            arguments["token_type_ids"] = pad_right([one or [] for one in types], 0)[0]
        output = self.model(**{name: value.to(self.device) for name, value in arguments.items()})
        logits: NDArray[np.float32] = output.logits.float().cpu().numpy()
        return logits

    def _padding(self, batch: Sequence[Sequence[int]]) -> int:
        """An id to pad a batch with that none of its inputs ends with: decoders look for the last token that is another.

        The tokenizer's own where it serves, for the few models whose position or end-of-text logic knows it.
        """
        ends = {ids[-1] for ids in batch}
        own = self._inputs.tokenizer.pad_token_id
        if own is not None and own not in ends and own < self._inputs.vocabulary:
            return int(own)
        return next(index for index in count() if index not in ends)

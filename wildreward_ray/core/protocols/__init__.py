"""The protocols that the reward service speaks: a request body into what it asks for, rewards into the reply's body.

A text that the client has rendered stays a text; a prompt with its response, or messages, become a conversation, which the reward
model's own template renders. The service's own protocol refuses keys that it doesn't know. The others are other programs', whose
clients may send more than is needed: unknown keys are not read, but an option that would change the reward and can't be
honoured is refused.
"""

from __future__ import annotations

from wildreward_ray.core.protocols.classify import CLASSIFY
from wildreward_ray.core.protocols.dialect import Dialect
from wildreward_ray.core.protocols.native import GET_REWARD, NATIVE
from wildreward_ray.core.protocols.predict import PREDICT
from wildreward_ray.core.protocols.remote_rm import REMOTE_RM
from wildreward_ray.core.protocols.score_evaluation import SCORE_EVALUATION

DIALECTS: tuple[Dialect, ...] = (NATIVE, GET_REWARD, CLASSIFY, REMOTE_RM, SCORE_EVALUATION, PREDICT)

__all__ = ["DIALECTS", "Dialect"]

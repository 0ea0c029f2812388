"""Whole users on one side, decided by nothing but their key and the salt."""

from __future__ import annotations

import pytest

from wildreward_ray.feedback.split import assign

KEYS = [f"user-{i}" for i in range(10_000)]


def sides(share: float, salt: str = "s") -> list[str]:
    return [assign(key, test_share=share, salt=salt) for key in KEYS]


def test_side_of_a_key_depends_on_no_other_key_and_not_on_order() -> None:
    forwards = dict(zip(KEYS, sides(0.3), strict=True))
    backwards = {key: assign(key, test_share=0.3, salt="s") for key in reversed(KEYS[::7])}
    assert backwards == {key: forwards[key] for key in backwards}


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_share_of_test_keys_is_about_the_one_asked_for(share: float) -> None:
    # Four standard deviations of a binomial over 10,000 keys.
    deviation = (share * (1 - share) / len(KEYS)) ** 0.5
    assert sides(share).count("test") / len(KEYS) == pytest.approx(share, abs=4 * deviation)


def test_nothing_is_held_out_at_share_zero_and_all_at_one() -> None:
    assert set(sides(0.0)) == {"train"}
    assert set(sides(1.0)) == {"test"}


def test_greater_share_only_adds_to_the_test_side() -> None:
    small, large = sides(0.1), sides(0.3)
    assert all(b == "test" for a, b in zip(small, large, strict=True) if a == "test")


def test_salt_draws_another_split() -> None:
    one, other = sides(0.5, "a"), sides(0.5, "b")
    agree = sum(a == b for a, b in zip(one, other, strict=True)) / len(KEYS)
    assert 0.45 < agree < 0.55


def test_sides_are_the_same_in_every_release_and_on_every_machine() -> None:
    """Held-out users must stay held out: a change here leaks old test rows into training."""
    drawn = [assign(f"u{i}", test_share=0.5, salt="wildreward") for i in range(8)]
    assert drawn == ["train", "test", "train", "train", "test", "train", "test", "train"]


def test_any_text_can_be_a_key() -> None:
    for key in ("", "中文", "\ud83d", "a\x00b"):
        assert assign(key, test_share=0.5, salt="s") in ("train", "test")

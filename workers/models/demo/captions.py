"""What people might write to ask for a scene, and the tokenizer that reads it.

A wording is a template; some are held out of training, to measure whether the model reads words or
whole sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workers.models.demo.shapes import SCENES, Scene

#: The wording of the 72 prompts of the evaluation.
PLAIN_WORDING = "a {colour} {shape} moving {direction}"
WORDINGS = (
    PLAIN_WORDING,
    "a {colour} {shape} moves {direction}",
    "a {colour} {shape} going {direction}",
    "a {colour} {shape} that goes {direction}",
    "the {colour} {shape} slides {direction}",
    "{colour} {shape} moving {direction}",
    "{colour} {shape}, {direction}",
    "{shape}, {colour}, {direction}",
    "{direction}: a {colour} {shape}",
    "moving {direction}, a {colour} {shape}",
    "{direction} goes the {colour} {shape}",
    "the {shape} is {colour} and moves {direction}",
    "a {shape} in {colour} moving {direction}",
    "a {shape} moving {direction}, in {colour}",
    "a {shape} that is {colour} travels {direction}",
    "moving {direction} in {colour}: a {shape}",
    "a video of a {colour} {shape} moving {direction}",
    "this clip shows a {shape}, it is {colour} and goes {direction}",
    "a {colour} {shape} travels {direction} over a grey background",
    "a plain grey background and a {colour} {shape} sliding {direction}",
    "something {colour} moves {direction}, it is a {shape}",
    "there is a {colour} {shape}. it moves {direction}.",
    "a {shape} appears. it is {colour} and goes {direction}.",
    "something moves {direction}. it is a {colour} {shape}.",
    "the background is plain. a {colour} {shape} is moving {direction}.",
)
HELD_OUT_WORDINGS = (
    "in {colour}, a {shape} going {direction}",
    "a {shape} slides {direction} and it is {colour}",
    "we can see one {colour} {shape} heading {direction}",
    "make a {colour} {shape} travel {direction} please",
    "the {shape} moves {direction}. the {shape} is {colour}.",
    "towards one side, {direction}, a {colour} {shape} glides",
)
_DIRECTION_WORDS: Mapping[str, tuple[str, ...]] = {
    "left": ("left", "to the left", "leftwards"),
    "right": ("right", "to the right", "rightwards"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
}
#: Words around a wording that mean nothing here.
_OPENINGS = (
    "please show", "I want", "now", "imagine", "look:", "here is", "in this film", "a short clip:",
    "render", "simple animation,", "once more,",
)  # fmt: skip
_CLOSINGS = ("slowly", "quietly", "on screen", "again", "in the picture", "for a while", "thanks")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'-()"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes the start of a word


def caption(scene: Scene, wording: str, direction: str | None = None) -> str:
    """The scene in that wording.

    >>> caption(Scene("circle", "red", "up"), HELD_OUT_WORDINGS[1], "upwards")
    'a circle slides upwards and it is red'
    """
    return wording.format(
        shape=scene.shape, colour=scene.colour, direction=direction or scene.direction
    )


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in one of `WORDINGS`, with variations that change nothing of its meaning."""
    words = _DIRECTION_WORDS[scene.direction]
    direction = words[0] if rng.random() < 0.6 else _one_of(words, rng)
    wording = PLAIN_WORDING if rng.random() < 0.15 else _one_of(WORDINGS, rng)
    text = caption(scene, wording, direction)
    if rng.random() < 0.1:
        text = f"{_one_of(_OPENINGS, rng)} {text}"
    if rng.random() < 0.1 and not text.endswith("."):
        text = f"{text} {_one_of(_CLOSINGS, rng)}"
    if rng.random() < 0.1:
        text = f"{_nonsense(rng)} {text}"
    chance = rng.random()
    if chance < 0.3:
        text = ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
        text = text if text.endswith(".") else f"{text}."
    elif chance < 0.35:
        text = text.upper()
    return text


def new_tokenizer() -> Any:
    """A unigram T5Tokenizer: each word of the captions is a token, others are spelt.

    It is of T5's own class, so that `from_pretrained` finds it without a network.
    """
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (_SPACE, -2.0)]
    vocab += [(f"{_SPACE}{word}", -3.0) for word in _words()]
    vocab += [(letter, -6.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=vocab, extra_ids=0)


def _words() -> Sequence[str]:
    """Every word of a caption, as it is, Capitalised and in CAPITALS."""
    texts = [
        caption(scene, wording, direction)
        for scene in SCENES
        for wording in WORDINGS
        for direction in _DIRECTION_WORDS[scene.direction]
    ]
    text = " ".join([*texts, *_OPENINGS, *_CLOSINGS])
    words = {"".join(letter for letter in word if letter.isalpha()) for word in text.split()}
    return sorted({form for word in words for form in (word, word.capitalize(), word.upper())})


def _nonsense(rng: np.random.Generator) -> str:
    """A word that the tokenizer has to spell."""
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(2, 7)))
    return "".join(letters)


def _one_of(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]

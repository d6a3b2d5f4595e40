"""Synthesised songs: a drum on each beat and a chord per bar, with a tempo, a tuning of overtones and a first beat.

What a dancer does is heard: a bar's chord names the move, drum and snare the two poses of it. So a network can learn
the dance from some songs and dance to others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stagecoach.data.synthetic import SOUND_RATE

BEATS_PER_BAR = 4
MOVES = 6
LOWEST = 110.0
"""Hertz of move 0's root; each further one is a whole tone above."""


@dataclass(frozen=True)
class Song:
    """``bars``: the move of each bar, repeated; ``first``: seconds of beat 0; ``overtones``: amplitudes."""

    name: str
    bpm: int
    first: float
    bars: tuple[int, ...]
    overtones: tuple[float, ...]

    @classmethod
    def of(cls, seed: int, number: int) -> Song:
        """Song ``number`` of a seed: eight bars, 90 to 150 beats per minute."""
        random = np.random.default_rng([seed, number, 1])
        bars: list[int] = []
        while len(bars) < 8:
            move = int(random.integers(MOVES))
            if not bars or bars[-1] != move:
                bars.append(move)
        overtones = random.uniform(0.2, 1.0, 5) / np.arange(1, 6)
        return cls(
            f"song_{number:03d}",
            int(random.integers(18, 31)) * 5,
            float(random.uniform(0.1, 0.4)),
            tuple(bars),
            tuple(overtones.tolist()),
        )

    @property
    def beat(self) -> float:
        """Seconds from one beat to the next."""
        return 60 / self.bpm

    def beat_times(self, seconds: float) -> np.ndarray:
        """Seconds of the beats before ``seconds``, float64 [n]."""
        return np.arange(self.first, seconds, self.beat)

    def move(self, number: int) -> int:
        """The move of the bar in which beat ``number`` lies; what comes before beat 0 belongs to the first bar."""
        return self.bars[max(number, 0) // BEATS_PER_BAR % len(self.bars)]

    def render(self, seconds: float) -> np.ndarray:
        """float32 [n] at ``SOUND_RATE``."""
        random = np.random.default_rng(0)
        out = np.zeros(round(seconds * SOUND_RATE), np.float64)
        for number, time in enumerate(self.beat_times(seconds)):
            sound = _drum(random) if number % 2 == 0 else _snare(random)
            start = round(time * SOUND_RATE)
            part = out[start : start + len(sound)]
            part += 0.6 * sound[: len(part)]
        times = np.arange(len(out)) / SOUND_RATE
        numbers = np.floor((times - self.first) / self.beat).astype(int)
        moves = np.array([self.move(n) for n in range(min(numbers.min(), 0), numbers.max() + 1)])
        roots = LOWEST * 2 ** (moves[numbers - min(numbers.min(), 0)] / 6)
        phase = 2 * np.pi * np.cumsum(roots) / SOUND_RATE
        chord = sum(a * (np.sin(k * phase) + 0.7 * np.sin(1.5 * k * phase)) for k, a in enumerate(self.overtones, 1))
        out += 0.15 * chord / sum(self.overtones)
        return (out / max(np.abs(out).max(), 1e-9) * 0.8).astype(np.float32)


def _drum(random: np.random.Generator) -> np.ndarray:
    """A tone that falls, struck with a click."""
    time = np.arange(round(0.12 * SOUND_RATE)) / SOUND_RATE
    tone = np.sin(2 * np.pi * (50 * time + 90 / 30 * (1 - np.exp(-30 * time)))) * np.exp(-25 * time)
    return tone + random.normal(size=len(time)) * 0.4 * np.exp(-120 * time)


def _snare(random: np.random.Generator) -> np.ndarray:
    time = np.arange(round(0.08 * SOUND_RATE)) / SOUND_RATE
    return random.normal(size=len(time)) * 0.5 * np.exp(-45 * time)

"""MIDI files as piano rolls, and back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gruclip.errors import DataError, UserError

KEYS = 88
LOWEST = 21  #: the MIDI number of the first of the 88 keys
PERCUSSION = 9  #: the channel on which numbers are drums
VELOCITY = 80

#: Steps of a tune, at most: a time that a damaged file gives may be any.
MAX_STEPS = 10**6


def _mido() -> Any:
    try:
        import mido
    except ImportError:
        raise UserError("MIDI files need the package mido: pip install mido") from None
    return mido


def read_midi(name: str, content: bytes, steps_per_beat: int) -> Tensor:
    """The notes of a MIDI file as a piano roll, uint8 (time steps, 88), all tracks and channels but drums together.

    A quarter note is cut into `steps_per_beat` steps; a note sounds from the step nearest to its beginning to the one
    nearest to its end (the later of two as near), for one step at least, and as long as any track holds it. Raises
    `DataError` for a file that is none, has no notes, or has one that is no key of a piano (21 to 108).
    """
    mido = _mido()
    try:
        file = mido.MidiFile(file=io.BytesIO(content))
        if file.ticks_per_beat <= 0:  # a negative header: frames a second, as in film
            raise ValueError("its times are not in beats")
        spans = [span for track in file.tracks for span in _spans(track, file.ticks_per_beat, steps_per_beat)]
    except Exception as error:  # of whatever kind mido raises for bytes that are no such file
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: not a MIDI file that can be read ({cause}); replace it or leave it out") from error
    if not spans:
        raise DataError(f"{name}: no notes in it; leave it out")
    strange = next((note for note, _, _ in spans if not LOWEST <= note < LOWEST + KEYS), None)
    if strange is not None:
        raise DataError(f"{name}: note {strange} is no key of a piano (21 to 108); transpose the tune or leave it out")
    steps = max(stop for _, _, stop in spans)
    if steps > MAX_STEPS:
        raise DataError(f"{name}: {steps:,} time steps long, which no tune is ({MAX_STEPS:,} at most); leave it out")
    roll = torch.zeros(steps, KEYS, dtype=torch.uint8)
    for note, start, stop in spans:
        roll[start:stop, note - LOWEST] = 1
    return roll


def _spans(messages: Any, ticks_per_beat: int, steps_per_beat: int) -> Iterator[tuple[int, int, int]]:
    """Each note of a track with its first step and the one after its last; what is never released ends with the track.

    A note that is struck again ends there; the release at that very time is the old one's, whichever comes first.
    """
    time, held, struck_again = 0, dict[tuple[int, int], int](), dict[tuple[int, int], int]()

    def nearest_step(ticks: int) -> int:
        return (2 * ticks * steps_per_beat + ticks_per_beat) // (2 * ticks_per_beat)

    def span(key: tuple[int, int]) -> tuple[int, int, int]:
        start = nearest_step(held.pop(key))
        return key[1], start, max(nearest_step(time), start + 1)

    for message in messages:
        time += message.time
        if message.type not in ("note_on", "note_off") or message.channel == PERCUSSION:
            continue
        key = message.channel, message.note
        if message.type == "note_on" and message.velocity > 0:
            if key in held:
                yield span(key)
                struck_again[key] = time
            held[key] = time
        elif key in held and struck_again.pop(key, None) != time:
            yield span(key)
    for key in list(held):
        yield span(key)


def midi_of(roll: Tensor, steps_per_beat: int, beats_per_minute: float = 120.0) -> bytes:
    """A piano roll (time steps, 88) as what a MIDI file holds; a note in consecutive steps is one that is held."""
    mido = _mido()
    ticks = 480 // steps_per_beat if 480 % steps_per_beat == 0 else 1
    file = mido.MidiFile(ticks_per_beat=ticks * steps_per_beat)
    track = mido.MidiTrack()
    file.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_per_minute)))
    before, last = torch.zeros(KEYS, dtype=torch.int8), 0
    for step, now in enumerate([*roll.to(torch.int8), torch.zeros(KEYS, dtype=torch.int8)]):
        change = now - before
        # Released before struck, so that no note of another step is cut.
        for kind, sign in (("note_off", -1), ("note_on", 1)):
            for key in (change == sign).nonzero().flatten().tolist():
                velocity = VELOCITY if sign > 0 else 0
                note = mido.Message(kind, note=LOWEST + key, velocity=velocity, time=(step - last) * ticks)
                track.append(note)
                last = step
        before = now
    made = io.BytesIO()
    file.save(file=made)
    return made.getvalue()

"""all-MiniLM-L6-v2: the reference encoder, its STS-B score and plain English text to calibrate on."""

from __future__ import annotations

from pathlib import Path

SENTENCES = Path(__file__).with_name("sentences.txt")  #: one sentence a line, written for this project

"""An LSTM tagger and a GRU classifier over token ids."""

from __future__ import annotations

from torch import Tensor, nn


class Tagger(nn.Module):
    """Two bidirectional LSTM layers and one label distribution for each token."""

    def __init__(self, vocabulary: int = 8000, width: int = 256, units: int = 256, labels: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, units, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * units, labels)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, S]`` -> ``[B, S, labels]``."""
        return self.head(self.lstm(self.embedding(input_ids))[0])


class SequenceClassifier(nn.Module):
    """Two GRU layers; the last layer's final state is classified."""

    def __init__(self, vocabulary: int = 8000, width: int = 256, units: int = 512, classes: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, units, num_layers=2, batch_first=True)
        self.head = nn.Linear(units, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, S]`` -> ``[B, classes]``."""
        return self.head(self.gru(self.embedding(input_ids))[1][-1])

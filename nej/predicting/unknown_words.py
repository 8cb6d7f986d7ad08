"""How much of a text a model's vocabulary does not know: it rises when papers change."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase


class UnknownWords:
    """Tells the share of a paper's words that WordPiece has to cut into pieces, or cannot read.

    Words and punctuation count, as the tokenizer separates them; of a truncated paper those that
    the model reads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        self.special, self.piece = np.zeros(size, bool), np.zeros(size, bool)
        self.unknown_id = tokenizer.unk_token_id
        self.special[[i for i in tokenizer.all_special_ids if i != self.unknown_id]] = True
        self.piece[[index for token, index in vocabulary.items() if token.startswith("##")]] = True

    def share(self, input_ids: Sequence[int]) -> float:
        """Return the share, from 0 to 1; 0 of a paper without words."""
        ids = np.asarray(input_ids)
        ids = ids[~self.special[ids]]
        if len(ids) == 0:
            return 0.0
        piece = self.piece[ids]
        begins = ~piece
        cut = begins & np.append(piece[1:], False)
        return float((cut | (ids == self.unknown_id)).sum() / max(1, begins.sum()))

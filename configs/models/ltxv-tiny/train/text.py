"""The tokenizer: a small sentencepiece unigram model with T5's conventions, trained on the captions."""
import json
import pathlib
import random
import string

import sentencepiece as spm
import torch

import world

TOKENS = 40                                   # padded length in training; masked, so any length works later
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tokenizer"


def train(folder=FOLDER):
    """pad 0, eos 1, unk 2; every letter, digit and common sign has a piece of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    rows = world.combinations()[0].tolist()
    lines = [world.caption(rng.choice(rows)) for _ in range(20000)]
    lines += [world.paraphrase(rng.choice(rows), rng) for _ in range(40000)]
    # One word a line: whole words then survive as pieces, which spares a two-layer encoder the spelling.
    lines = [w for line in lines for w in line.split()]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "spiece"), model_type="unigram", vocab_size=320,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>",
        unk_piece="<unk>", character_coverage=1.0, normalization_rule_name="nmt_nfkc", num_threads=1,
        required_chars=string.ascii_letters + string.digits + ".,-'!?:;()", minloglevel=2)
    (folder / "spiece.vocab").unlink()
    special = dict(eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    config = dict(tokenizer_class="T5Tokenizer", extra_ids=0, additional_special_tokens=[], model_max_length=256,
                  legacy=True, **special)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


class Tokenizer:
    def __init__(self, folder=FOLDER):
        self.sp = spm.SentencePieceProcessor(model_file=str(pathlib.Path(folder) / "spiece.model"))

    def __call__(self, captions, tokens=TOKENS):
        """Ids [n, tokens], padded with 0; the end mark is always kept."""
        out = torch.zeros(len(captions), tokens, dtype=torch.long)
        for i, ids in enumerate(self.sp.encode([c.strip() for c in captions])):
            ids = ids[:tokens - 1] + [1]
            out[i, :len(ids)] = torch.tensor(ids)
        return out


if __name__ == "__main__":
    train()

"""`tiny-random`: a seeded random Llama of two layers with a byte tokenizer, to try the plumbing in seconds.

It knows nothing, so its scores mean nothing; every command runs with it.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END, START = "<pad>", "<end>", "<start>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<start>' + message['role'] + '\\n' + message['content'] + '<end>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>assistant\\n' }}{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer whose tokens are the 256 bytes and three special tokens; it needs no file."""
    symbols = [PAD, END, START, *sorted(ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        bos_token=START,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(
    *, seed: int = 0, width: int = 32, layers: int = 2, vocabulary: int = 259, context: int = 4096
) -> LlamaForCausalLM:
    """Build a random Llama decoder; equal arguments give equal weights, whatever ran before."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)

"""Prompts through the chat template, answers as they are: python chat.py PROMPTS.json ANSWERS.json CHECKPOINT ...

Greedy, at most 120 tokens. Models without a template go on from the prompt.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole

logging.disable_progress_bar()
prompts, answers = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), {}
for name in sys.argv[3:]:
    source = ModelSource(name)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    model = load_whole(source, torch.device("cpu"), torch.float32)
    answers[name] = []
    for prompt in prompts:
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            read = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            read = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            written = model.generate(**read, max_new_tokens=120, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        text = tokenizer.decode(written[0, read["input_ids"].shape[1] :], skip_special_tokens=True)
        answers[name].append({"prompt": prompt, "answer": text})
        print(f"{name}\n> {prompt}\n{text}\n", flush=True)
Path(sys.argv[2]).write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

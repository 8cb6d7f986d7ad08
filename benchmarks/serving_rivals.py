"""What nej's service is measured against; benchmarks/serving.py starts these.

    python benchmarks/serving_rivals.py pipeline models/quickstart 8001

pipeline        transformers.pipeline behind FastAPI, a request at a time, as most people write it
litserve        LitServe with batches: tokenizer and model of transformers, float32
litserve-bf16   the same in bfloat16 autocast, where nej computes in bfloat16
"""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

try:
    from litserve import LitAPI, LitServer
except ImportError:  # the pipeline needs none
    LitAPI = object

MOST_PAPERS = 32  # of a LitServe batch
BATCH_TIMEOUT_SECONDS = 0.01


def text_of(paper: dict, fields: str) -> str:
    """Return what the model reads."""
    return f"{paper['title']}. {paper['summary']}" if "title" in fields else paper["summary"]


def serve_pipeline(model: Path, port: int) -> None:
    """Serve by transformers.pipeline."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Paper(BaseModel):
        title: str = ""
        summary: str
    config = json.loads((model / "training_config.json").read_text("utf-8"))
    classify = pipeline("text-classification", model=str(model), top_k=5, truncation=True,
                        max_length=config["max_length"], device="cpu")
    app = FastAPI()

    @app.post("/predict")
    async def predict(paper: Paper):
        return classify([text_of(paper.model_dump(), config["text_fields"])])[0]
    uvicorn.run(app, port=port, log_level="error", access_log=False)


class Api(LitAPI):
    """A LitAPI as LitServe's documents write one for a classifier."""

    def __init__(self, model: Path, bf16: bool):
        super().__init__(max_batch_size=MOST_PAPERS, batch_timeout=BATCH_TIMEOUT_SECONDS)
        self.folder, self.bf16 = model, bf16

    def setup(self, device):
        """Load the model, in the process that runs it."""
        self.settings = json.loads((self.folder / "training_config.json").read_text("utf-8"))
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(self.folder).eval()

    def decode_request(self, request):
        """Return a paper's text."""
        return text_of(request, self.settings["text_fields"])

    def batch(self, inputs):
        """Return the texts as they are."""
        return inputs

    def predict(self, texts):
        """Return the five best classes of each text."""
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt",
                                max_length=self.settings["max_length"])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.model(**inputs).logits.float().softmax(-1).topk(5)

    def unbatch(self, output):
        """Return what belongs to each text."""
        return list(zip(output.values.tolist(), output.indices.tolist()))

    def encode_response(self, output):
        """Return what goes over the wire."""
        names = self.model.config.id2label
        return [{"label": names[index], "score": score} for score, index in zip(*output)]


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    name, folder, port = sys.argv[1:]
    if name == "pipeline":
        serve_pipeline(Path(folder), int(port))
    else:
        LitServer(Api(Path(folder), name == "litserve-bf16"), accelerator="cpu", timeout=60).run(
            host="127.0.0.1", port=int(port), log_level="error", generate_client_file=False)

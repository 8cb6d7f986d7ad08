"""What goes over the wire: papers and predictions, checked, and described for OpenAPI."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

BODY_BYTES = 1 << 20
MOST_PAPERS = 128
TITLE_CHARACTERS = 2_000
SUMMARY_CHARACTERS = 20_000  # arXiv allows 1,920
# no NUL; in a summary something that is no white space. In this form a long text takes linear time
NO_NUL = r"^[^\x00]*$"
SOME_TEXT = r"^\s*[^\s\x00][^\x00]*$"


class Paper(BaseModel):
    """A paper to sort: its summary, and its title if there is one."""

    model_config = ConfigDict(extra="forbid", strict=True, regex_engine="python-re")
    title: Annotated[str, Field(max_length=TITLE_CHARACTERS, pattern=NO_NUL)] | None = None
    summary: Annotated[str, Field(min_length=1, max_length=SUMMARY_CHARACTERS, pattern=SOME_TEXT)]


OneOrMore = Annotated[
    Annotated[Paper, Tag("paper")]
    | Annotated[list[Paper], Tag("papers"), Field(min_length=1, max_length=MOST_PAPERS)],
    Discriminator(lambda body: "papers" if isinstance(body, list) else "paper")]


class Category(BaseModel):
    """A category and how probable it is that the paper's own is this one."""

    code: str = Field(examples=["cs.CV"])
    name: str = Field(examples=["Computer Vision and Pattern Recognition"])
    probability: float = Field(ge=0, le=1, description="calibrated on validation papers")


class Prediction(BaseModel):
    """What the model makes of a paper."""

    categories: list[Category] = Field(description="the most probable first")
    abstained: bool = Field(description="the first one's probability is under the threshold")
    truncated: bool = Field(description="the paper is longer than what the model reads")


class Predictions(BaseModel):
    """What the model makes of each paper, in their order."""

    model: str
    version: str = Field(description="the first 12 digits of the weights' sha256")
    threshold: float | None = Field(description="under this probability the model abstains; null: "
                                                "it never does")
    predictions: list[Prediction]


class Class(BaseModel):
    """A category that the model knows."""

    code: str
    name: str


class ModelDescription(BaseModel):
    """Which model answers, what it was made from and how good it is."""

    model: str
    version: str
    threshold: float | None
    wanted_accuracy: float | None = Field(description="the accuracy for which the threshold was "
                                                      "chosen, on validation papers")
    classes: list[Class]
    reads: str = Field(description="summary, or title+summary")
    max_length: int = Field(description="tokens that it reads; what follows is cut off")
    trained: str
    commit: str | None
    data: dict[str, Any] = Field(description="path, md5 and DVC revision of the papers")
    papers: dict[str, int] = Field(description="papers of each split")
    metrics: dict[str, Any] = Field(description="metrics.json of the model directory")
    card: str = Field(description="the model card, Markdown")


class State(BaseModel):
    """How the service is."""

    status: str


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


_REMEDIES = {
    "missing": "is missing",
    "string_type": "must be a text",
    "string_unicode": "has half of a surrogate pair, and that is no text; decode the paper again",
    "model_type": "must be an object with a summary and, if there is one, a title",
    "model_attributes_type": "must be an object with a summary and, if there is one, a title",
    "too_long": f"must be at most {MOST_PAPERS} papers; send several requests",
    "too_short": "must be at least one paper",
    "extra_forbidden": "is unknown; a paper has a title and a summary",
    "json_invalid": "is not JSON",
}


def sentence(errors: Sequence[dict[str, Any]]) -> str:
    """Return what is wrong with a request, without repeating what was sent."""
    error = errors[0]
    place = [part for part in error["loc"] if part not in ("body", "query", "paper")]
    if error["type"] == "json_invalid":
        where = f"the body, from character {place[0]} on," if place else "the body"
    elif place[:1] == ["papers"]:
        where = " of ".join([*map(str, place[2:][::-1]), *(
            f"paper {number + 1}" for number in place[1:2])]) or "the list"
    else:
        where = " ".join(map(str, place))[:80] or "the body"
    if error["type"] == "string_pattern_mismatch":
        wrong = ("has no text, or a NUL character" if where.startswith("summary")
                 else "has a NUL character")
    elif error["type"] == "string_too_long":
        wrong = f"is over {error['ctx']['max_length']:,} characters long"
    elif error["type"] == "string_too_short":
        wrong = "is empty"
    else:
        wrong = _REMEDIES.get(error["type"], error["msg"][:1].lower() + error["msg"][1:])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where} {wrong}{more}"

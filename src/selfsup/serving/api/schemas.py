"""What is asked for and what is answered, as JSON: OpenAI's fields where there are such, ours beside them.

Every bound that a request alone can overstep stands here. A field of OpenAI's that is not served is known by its name,
and refused where it asks for anything.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_TEXT = 1 << 20  # characters of one text
MOST_PROMPT = 1 << 15  # tokens of a prompt
MOST_WRITTEN = 1 << 14  # tokens of a text that is written
MOST_CHOICES = 64  # texts of one request
MOST_INPUTS = 512  # texts or images of one request
MOST_LABELS = 1000
MOST_HITS = 1000
MOST_IMAGE = 1 << 24  # bytes of one image

Text = Annotated[str, Field(max_length=MOST_TEXT)]
Id = Annotated[int, Field(ge=0)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=MOST_PROMPT)]
Image = Annotated[
    str, Field(max_length=MOST_IMAGE // 3 * 4 + 100, pattern=r"^data:image/", description="data:image/…;base64,…")
]


class Asked(BaseModel):
    """A request, which says no more than is known here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="its name; the first one that can do it without")


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class CompletionAsked(Asked):
    """Texts that go on from prompts."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_CHOICES)]
    ) = Field("", description="a text, several, or the same as ids of the model's own tokens")
    max_tokens: int = Field(16, ge=0, le=MOST_WRITTEN, description="0 only with echo")
    temperature: float = Field(1.0, description="0 takes the likeliest token")
    top_p: float | None = Field(1.0, description="draw from the likeliest that hold this probability")
    n: int = Field(1, ge=1, le=MOST_CHOICES, description="texts for each prompt")
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]
        | None
    ) = Field(None, description="the text ends before the first of these")
    seed: int | None = Field(None, description="the same seed writes the same texts; drawn without")
    logprobs: int | None = Field(None, ge=0, le=20, description="so many of the likeliest tokens beside each")
    echo: bool = Field(False, description="give the prompt before each text")
    stream: bool = Field(False, description="server-sent events, as the text is written")
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, description="draw from the k likeliest")
    min_p: float | None = Field(None, description="drop what is below this share of the likeliest")
    repetition_penalty: float = Field(1.0, description="above 1 discourages what was written before")
    user: str | None = Field(None, max_length=1000, description="changes nothing")
    best_of: int | None = Field(None, description="not served")
    frequency_penalty: float | None = Field(None, description="not served; see repetition_penalty")
    presence_penalty: float | None = Field(None, description="not served; see repetition_penalty")
    logit_bias: dict[str, float] | None = Field(None, description="not served")
    suffix: str | None = Field(None, description="not served")

    @model_validator(mode="after")
    def _served(self) -> CompletionAsked:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of is not served; ask for as many texts by n")
        for name in ("frequency_penalty", "presence_penalty", "logit_bias", "suffix"):
            if getattr(self, name):
                raise ValueError(f"{name} is not served; leave it out")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, so that nothing would be answered; give 1 or more, or echo")
        if len(self.prompts) * self.n > MOST_CHOICES:
            raise ValueError(
                f"{len(self.prompts)} prompts of {self.n} texts each are too many at once; ask for {MOST_CHOICES}"
            )
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each as a text, or each as ids."""
        prompt: Any = self.prompt
        return prompt if isinstance(prompt, list) and isinstance(prompt[0], str | list) else [prompt]

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class EmbeddingsAsked(Asked):
    """Vectors of length 1 of texts or images."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_INPUTS)] = Field(
        description="texts, or images as data:image/…;base64,… URLs"
    )
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of little-endian float32")
    dimensions: int | None = Field(None, ge=1, description="keep the first so many numbers")
    prompt: str | None = Field(None, max_length=100, description="query or document, where the model tells them apart")
    user: str | None = Field(None, max_length=1000, description="changes nothing")

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class FillAsked(Asked):
    """The likeliest words in each place of a text that says [MASK]."""

    text: Text
    top: int = Field(5, ge=1, le=100, description="candidates for each place")


class ZeroShotAsked(Asked):
    """Which of some labels describes each image."""

    images: Annotated[list[Image], Field(min_length=1, max_length=MOST_CHOICES)]
    labels: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=MOST_LABELS)]
    templates: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=100)] = Field(
        ["{}"], description="texts around a label, {} in its place"
    )


class SearchAsked(BaseModel):
    """The records of the library that are nearest to words or to an image."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: Text | None = Field(None, description="words to look for")
    image: Image | None = Field(None, description="in their place")
    top: int = Field(10, ge=1, le=MOST_HITS)
    where: str | None = Field(None, max_length=10_000, description="a condition on the columns in SQL")
    hybrid: bool = Field(False, description="look for the words themselves too")
    per_document: int = Field(1, ge=1, le=MOST_HITS, description="most passages of one document")


# -- answers -------------------------------------------------------------------------------------------------


class Logprobs(BaseModel):
    """Of each token: its text, its log probability, those of the likeliest ones, and where in the text it begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class Embedding(BaseModel):
    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingsUsage


class Candidate(BaseModel):
    token: str
    probability: float


class Filled(BaseModel):
    model: str
    places: list[list[Candidate]]


class Described(BaseModel):
    """Of an image: the likeliest label, and the probability of each, the likeliest first."""

    index: int
    label: str
    probabilities: dict[str, float]


class ZeroShot(BaseModel):
    model: str
    data: list[Described]


class Hit(BaseModel):
    """As `selfsup search --json` gives it."""

    model_config = ConfigDict(extra="allow")

    score: float
    id: str
    text: str
    source: str
    values: dict[str, Any]


class Hits(BaseModel):
    library: str
    hits: list[Hit]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["selfsup"] = "selfsup"
    kind: str = Field(description="a decoder, a text encoder, an image encoder or an image-text model")


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]

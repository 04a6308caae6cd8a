"""What requests and answers look like: OpenAI's, as far as this server can do what they ask for.

A field that would change the answer and cannot be honoured is refused, and so is one that nobody knows: a misspelt
`max_token` is told, not ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate)") from None
    return text


String = Annotated[str, AfterValidator(_writable)]
Stop = Annotated[String, Field(min_length=1, max_length=200)]
Stops = Stop | Annotated[list[Stop], Field(max_length=4)] | None
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]
Nothing = Literal[None]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Part(Strict):
    type: Literal["text"]
    text: String


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: String | Annotated[list[Part], Field(min_length=1)]
    name: String | None = None
    refusal: Nothing = None

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class Sampling(Strict):
    """What both kinds of request have."""

    model: String
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stops = None
    n: Annotated[int, Field(ge=1, le=128, description="only 1 can be had")] | None = 1
    user: String | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0, description="not supported: only 0")] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0, description="not supported: only 0")] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0, description="not supported")] | None = None


class ResponseFormat(Strict):
    type: Literal["text"]


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0, description="not supported")] | None = None
    response_format: ResponseFormat | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None


class CompletionRequest(Sampling):
    prompt: String | Ids | Annotated[list[String], Field(min_length=1, max_length=1)]
    logprobs: Nothing = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1, description="only 1 can be had")] | None = None
    suffix: Nothing = None


class PromptTokens(BaseModel):
    cached_tokens: int  # that stood in memory and were not read again


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int = 0
    message: Said
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    index: int = 0
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class TextAnswer(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "holdall"
    context: int = Field(description="tokens that a prompt and its answer may have together")


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Fault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    error: Fault


class Health(BaseModel):
    status: Literal["ok"]


class MemoryPart(BaseModel):
    name: str
    kind: Literal["weights", "kv", "other", "free"]
    bytes: int


class MemoryNow(BaseModel):
    """Where the memory is: parts that add up to `total`."""

    total: int
    limit: int | None
    resident: int = Field(description="of the process, as the kernel counts it")
    base: int = Field(description="of that, interpreter and libraries, which no limit counts")
    kv_full: int = Field(description="what the contexts would take if they were kept whole")
    running: int
    waiting: int
    parts: list[MemoryPart]


class Quality(BaseModel):
    """What is known of what the weights' and the context's method cost in quality; null: not measured."""

    model: str
    weights: str | None
    kv: str | None
    kv_budget: str | None
    weights_report: dict[str, Any] | None
    kv_report: dict[str, Any] | None
    how: str = Field(description="the command that measures what is not measured")

"""From requests to jobs: which model, how many tokens, and whether that can be held."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from holdall.dropins.tokenizer import Tokenizer
from holdall.errors import BadInput, BudgetError
from holdall.server import faults, schemas
from holdall.server.faults import Refusal
from holdall.server.protocol import Job, Runner
from holdall.server.ticket import Ticket, Told
from holdall.server.worker import Worker


@dataclass(frozen=True)
class Settings:
    """What `holdall serve` was told.

    answer: tokens of an answer whose request names no limit. timeout: seconds from request to the end of its answer.
    idle: seconds in which a client must go on sending or reading. grace: seconds that answers get at shutdown.
    """

    name: str = "model"
    api_key: str | None = None
    host: str = "127.0.0.1"
    queue: int = 64
    answer: int = 1024
    temperature: float = 1.0
    timeout: float = 600.0
    idle: float = 60.0
    grace: float = 20.0
    body: int = 1_000_000


class Service:
    """One model, its tokenizer, and the worker that runs it."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, settings: Settings, base: int = 0):
        self.runner, self.tokenizer, self.settings = runner, tokenizer, settings
        self.lock = threading.Lock()  # the tokenizer must not be used by two threads at a time
        self.worker = Worker(runner, tokenizer, self.lock, settings.queue, base)
        self.created = int(time.time())

    async def begin(self, body: schemas.ChatRequest | schemas.CompletionRequest) -> Ticket:
        """A ticket for the request, or a Refusal that says what is wrong with it."""
        if body.model != self.settings.name:
            message = f"the model {body.model[:100]!r} does not exist; this server has {self.settings.name!r}"
            raise Refusal(404, message, "model_not_found", "model")
        if body.n not in (None, 1):
            raise Refusal(400, f"n: got {body.n}; wanted 1, one answer a request", "invalid_value", "n")
        if not self.worker.alive:
            raise faults.stopping()
        ids, param = await asyncio.to_thread(self._ids, body)
        most = self._most(body, len(ids), param)
        job = Job(
            ids,
            most,
            self.settings.temperature if body.temperature is None else body.temperature,
            1.0 if body.top_p is None else body.top_p,
            secrets.randbits(63) if body.seed is None else body.seed,
        )
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return self.worker.submit(job, stops, self.settings.timeout)

    def _ids(self, body: schemas.ChatRequest | schemas.CompletionRequest) -> tuple[list[int], str]:
        """The prompt's tokens, and the field that they come from."""
        if isinstance(body, schemas.ChatRequest):
            messages = [m.plain() for m in body.messages]
            if not any(m["content"] for m in messages):
                raise Refusal(400, "messages: got no text; wanted a question", "empty_prompt", "messages")
            return self._locked(lambda: self.tokenizer.chat(messages)), "messages"
        prompt = body.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], str):
            text = prompt if isinstance(prompt, str) else str(prompt[0])
            ids = self._locked(lambda: self.tokenizer.encode(text, special=True)) if text else []
        else:
            ids = [int(n) for n in prompt]
            if max(ids) >= len(self.tokenizer):
                wanted = f"tokens below {len(self.tokenizer)}"
                raise Refusal(400, f"prompt: got {max(ids)}; wanted {wanted}", "invalid_value", "prompt")
        if not ids:
            raise Refusal(400, "prompt: got nothing; wanted some text", "empty_prompt", "prompt")
        return ids, "prompt"

    def _locked(self, encode: Callable[[], list[int]]) -> list[int]:
        with self.lock:
            try:
                return encode()
            except BadInput as fault:
                raise Refusal(400, str(fault), "invalid_value", "messages") from fault

    def _most(self, body: schemas.ChatRequest | schemas.CompletionRequest, tokens: int, param: str) -> int:
        """How long the answer may be, so that everything fits."""
        context = self.runner.context
        if tokens >= context:
            message = f"the prompt has {tokens} tokens; this server holds {context}, the answer included"
            raise faults.too_long(message, param)
        asked, name = body.max_tokens, "max_tokens"
        if isinstance(body, schemas.ChatRequest) and body.max_completion_tokens is not None:
            asked, name = body.max_completion_tokens, "max_completion_tokens"
        most = min(self.settings.answer, context - tokens) if asked is None else asked
        if tokens + most > context:
            message = f"{name}: got {most}; wanted at most {context - tokens}, with {tokens} tokens of prompt"
            raise faults.too_long(message, name)
        while True:
            try:
                self.runner.check(tokens, most)
                return most
            except BudgetError as fault:
                if asked is not None or most == 1:
                    raise faults.too_long(f"this does not fit: {fault}", param) from fault
                most //= 2

    async def told(self, ticket: Ticket) -> Told:
        """The next news of a request; a Refusal where there is no answer."""
        try:
            async with asyncio.timeout(max(0.0, ticket.deadline - time.monotonic())):
                news = await ticket.news.get()
        except TimeoutError:
            self.worker.drop(ticket)
            raise faults.too_slow(self.settings.timeout) from None
        if news.fault is not None:
            raise news.fault
        return news

    def usage(self, ticket: Ticket) -> schemas.Usage:
        prompt, new = len(ticket.job.ids), ticket.answer.tokens
        reused = schemas.PromptTokens(cached_tokens=ticket.reused)
        return schemas.Usage(
            prompt_tokens=prompt,
            completion_tokens=new,
            total_tokens=prompt + new,
            prompt_tokens_details=reused,
        )

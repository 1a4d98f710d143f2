"""Responses to many prompts, through few rows (`generation.rows`).

When a response has ended, its row takes the next response to the prompt at once; when
all responses to a prompt are under way or ended, the next prompt takes its rows. Rows
decode a round of a few tokens at a time, and all of this happens between rounds. When
no prompt is left and half of the rows are idle, the others move together.

A response depends on its prompt and its number: neither on its row nor on what stands
beside it.

Letters: N prompts, K responses to each, R longest response.
"""

from collections import deque
from typing import NamedTuple

import jax
import numpy as np

from rlhf_jax.generation import rows as rows_
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.parallel.sharding import fetch, shards_of_batch

STEPS = 16  # tokens of each row in a round
GROUPS = 4  # while prompts queue, this part of them is read at once
# The ring of slots doubles with the longest response, from SHORTEST_RING slots or more,
# and the number of rows is halved, to FEWEST_ROWS or more, so many times at most: each
# size is a program to compile.
SHORTEST_RING, MOST_DOUBLINGS = 64, 5
FEWEST_ROWS, MOST_HALVINGS = 8, 2


class Responses(NamedTuple):
    """N * K responses on the host, the K to a prompt adjacent, with the log-probability
    of each token under the distribution that it was drawn from.

    `routing` are the E experts of each token of prompt and response in each of the L
    layers with experts, int16 [N * K, P + R, L, E], -1 where there is no token; None
    unless they were asked for.
    """

    tokens: np.ndarray  # int32 [N * K, R], right-padded
    logprobs: np.ndarray  # float32 [N * K, R], 0 behind the end
    lengths: np.ndarray  # int32 [N * K]
    ended: np.ndarray  # bool [N * K], by a stop token
    done: np.ndarray  # bool [N * K], ended or cut; False where it would go on
    routing: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        """True at the tokens of a response: bool [N * K, R]."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]


def no_responses(count: int, sampling: Sampling) -> Responses:
    """Return `count` responses without a token."""
    shape = (count, sampling.max_new_tokens)
    return Responses(
        tokens=np.full(shape, sampling.pad_id, np.int32),
        logprobs=np.zeros(shape, np.float32),
        lengths=np.zeros(count, np.int32),
        ended=np.zeros(count, bool),
        done=np.zeros(count, bool),
    )


def respond(
    model: ChatGLM,
    tokens: np.ndarray,
    mask: np.ndarray,
    key: jax.Array,
    sampling: Sampling,
    *,
    samples: int,
    rows: int,
    numbers: np.ndarray | None = None,
    begun: Responses | None = None,
    enough: int | None = None,
    routed: bool = False,
) -> Responses:
    """Sample `samples` responses to each of N left-padded prompts [N, P].

    Args:
        rows: the number of rows that decode side by side at most; 0 for all.
        numbers: a number for each response, int [N * K], from which its random keys
            derive; None numbers the responses in their order.
        begun: responses to go on with; None begins all of them.
        enough: return when all responses to so many prompts are done; None for all.
        routed: whether to keep the routing, of a mixture of experts whose responses all
            begin here.

    Raises:
        ValueError: prompt and response do not fit the model's context, or
            `check_inputs` refuses the prompts.
    """
    count = len(tokens) * samples
    if numbers is None:
        numbers = np.arange(count)
    begun = begun or no_responses(count, sampling)
    responses = jax.tree.map(np.array, begun)
    if routed:
        width = tokens.shape[1] + sampling.max_new_tokens
        shape = (count, width, *model.config.routing_shape)
        responses = responses._replace(routing=np.full(shape, -1, np.int16))
    if not count:
        return responses
    rows_.check_prompts(model, tokens, mask, sampling)
    work = _Work(model, tokens, mask, numbers, sampling, rows, responses)
    while work.num_done < (len(tokens) if enough is None else enough):
        work.seat()
        work.decode(key)
    return responses


def sample_responses(
    model: ChatGLM,
    prompts: list[list[int]],
    key: jax.Array,
    sampling: Sampling,
    *,
    samples: int,
    rows: int,
) -> list[list[list[int]]]:
    """Sample `samples` responses to each prompt by `respond`, as token ids: a response
    that ended includes its stop token; one cut at `sampling.max_new_tokens` has none.
    """
    width = -(-max(map(len, prompts), default=0) // 8) * 8
    tokens = np.full((len(prompts), width), sampling.pad_id, np.int32)
    mask = np.arange(width) >= width - np.array([[len(p)] for p in prompts], int)
    tokens[mask] = [token for prompt in prompts for token in prompt]
    responses = respond(model, tokens, mask, key, sampling, samples=samples, rows=rows)
    ids = [
        tokens[:length].tolist()
        for tokens, length in zip(responses.tokens, responses.lengths, strict=True)
    ]
    return [ids[i : i + samples] for i in range(0, len(ids), samples)]


def ring_sizes(limit: int) -> list[int]:
    """Return the numbers of slots that a ring for responses of `limit` tokens may
    have. A step reads the whole ring, so it grows with the responses."""
    sizes = [limit]
    while len(sizes) <= MOST_DOUBLINGS and sizes[0] // 2 >= SHORTEST_RING:
        sizes.insert(0, -(-sizes[0] // 2))
    return sizes


def row_counts(count: int, *, unit: int) -> list[int]:
    """Return the numbers of rows that may decode side by side, descending.

    Args:
        unit: the number of devices that share the rows.
    """
    counts = [count]
    while len(counts) <= MOST_HALVINGS:
        half = counts[-1] // 2
        if counts[-1] % 2 or half < FEWEST_ROWS or (half % unit and not count % unit):
            break
        counts.append(half)
    return counts


class Layout(NamedTuple):
    """Rows for prompts: `share` rows for each of `prompts`."""

    prompts: int
    share: int


def first_layout(prompts: int, samples: int, rows: int) -> Layout:
    """Return how many prompts are answered at a time, by how many rows each. All
    prompts at once have as many rows as there are; else each has one row."""
    rows = rows or prompts * samples
    share = min(max(rows // prompts, 1), samples)
    return Layout(min(rows // share, prompts), share)


def layouts(first: Layout, *, unit: int) -> list[Layout]:
    """Return the layouts that rows may come to have: with fewer rows, and where the
    rows of a prompt have ended, with fewer for each. Every layout is a program for
    every size of the ring.

    Args:
        unit: the number of devices that share the rows.
    """
    unit_of_prompts = unit if first.prompts % unit == 0 else 1
    _, *fewer = row_counts(first.prompts * first.share, unit=unit)
    shares = [first.share >> n for n in range(first.share.bit_length())]
    every = [
        Layout(count // share, share)
        for count in fewer
        for share in shares
        if count % share == 0
    ]
    return [first, *(x for x in every if x.prompts % unit_of_prompts == 0)]


class _Work:
    """The responses still to be sampled, and the rows that sample them.

    `prompt_of` [prompts of the layout] is the prompt at each place, -1 for none;
    `answering` [places, share] is the response in each row, -1 for none.
    """

    def __init__(
        self,
        model: ChatGLM,
        tokens: np.ndarray,
        mask: np.ndarray,
        numbers: np.ndarray,
        sampling: Sampling,
        rows: int,
        responses: Responses,
    ):
        count, samples = len(tokens), len(responses.done) // len(tokens)
        self.model, self.sampling, self.responses = model, sampling, responses
        self.tokens, self.mask, self.numbers = tokens, mask, numbers
        self.decoder = rows_.for_decoding(model)
        self.layout = first_layout(count, samples, rows)
        self.layouts = layouts(self.layout, unit=shards_of_batch())
        self.prompt_of = np.full(self.layout.prompts, -1)
        self.answering = np.full(self.layout, -1)
        # A prompt's responses that no row has begun in this call.
        todo = np.flatnonzero(~responses.done)
        self.waiting: list[deque[int]] = [deque() for _ in range(count)]
        for response in todo:
            self.waiting[response // samples].append(int(response))
        self.queue = deque(i for i in range(count) if self.waiting[i])
        self.group = self.layout.prompts
        if count > self.layout.prompts:
            self.group = -(-self.layout.prompts // GROUPS)
        self.slots = ring_sizes(sampling.max_new_tokens)[0]
        self.rows = rows_.empty(
            self.decoder,
            prompts=self.layout.prompts,
            share=self.layout.share,
            width=tokens.shape[1],
            slots=self.slots,
        )

    @property
    def num_done(self) -> int:
        """The number of prompts all of whose responses are done."""
        return int(self.responses.done.reshape(len(self.tokens), -1).all(1).sum())

    def seat(self) -> None:
        """Give free rows responses, after reading their prompts."""
        while self.queue:
            is_free = (self.answering < 0).all(axis=1)
            has_left = [i >= 0 and bool(self.waiting[i]) for i in self.prompt_of]
            is_free &= ~np.array(has_left)
            count = min(self.group, len(self.queue))
            if is_free.sum() < count:
                break
            prompts = [self.queue.popleft() for _ in range(count)]
            places = np.flatnonzero(is_free)[:count]
            self.prompt_of[places] = prompts
            # A smaller group has the same shape: its padding has no place.
            rest = self.group - count
            which = np.pad(prompts, (0, rest), mode="edge")
            self.rows, routing = rows_.read_prompts(
                self.model,
                self.rows,
                np.pad(places, (0, rest), constant_values=len(is_free)),
                self.tokens[which],
                self.mask[which],
            )
            kept = self.responses.routing
            if kept is not None:  # for each of a prompt's responses
                kept = kept.reshape(len(self.tokens), -1, *kept.shape[1:])  # a view
                is_real = self.mask[prompts][..., None, None]
                own = np.where(is_real, fetch(routing)[:count], -1)
                kept[prompts, :, : self.tokens.shape[1]] = own[:, None]
        self._fit()
        starts = np.zeros(self.answering.shape, bool)
        for place, row in zip(*np.nonzero(self.answering < 0), strict=True):
            prompt = self.prompt_of[place]
            if prompt >= 0 and self.waiting[prompt]:
                self.answering[place, row] = self.waiting[prompt].popleft()
                starts[place, row] = True
        begun = starts & (self.responses.lengths[self.answering] > 0)
        self._read_begun(np.flatnonzero(begun))
        self.starts = (starts & ~begun).reshape(-1)

    def decode(self, key: jax.Array) -> None:
        """Decode a round, and keep the tokens that belong to responses."""
        answering = self.answering.reshape(-1)  # a view
        self.rows, drawn = rows_.decode_round(
            self.decoder,
            self.rows,
            key,
            self.starts,
            self.numbers[answering].astype(np.int32),
            self.sampling,
            steps=STEPS,
            routed=self.responses.routing is not None,
        )
        drawn, live = fetch((drawn, self.rows.live))
        tokens, logprobs, lengths, ended, done, routing = self.responses
        width = self.tokens.shape[1]
        for row in np.flatnonzero(answering >= 0):
            response, new = answering[row], drawn.mask[row]
            first = lengths[response]
            lengths[response] = last = first + new.sum()
            tokens[response, first:last] = drawn.tokens[row, new]
            logprobs[response, first:last] = drawn.logprobs[row, new]
            if routing is not None:
                routing[response, width + first : width + last] = drawn.routing[
                    row, new
                ]
            if not live[row]:
                done[response], answering[row] = True, -1
                ended[response] = tokens[response, last - 1] in self.sampling.stop_ids

    def _fit(self) -> None:
        """Choose the size of the ring, and when no prompt is left, of the rows."""
        responses, limit = self.responses, self.sampling.max_new_tokens
        longest = int(responses.lengths[~responses.done].max(initial=0))
        slots = self._ring(min(longest + STEPS, limit))
        layout = None if self.queue else self._smaller_layout()
        if layout is None:
            layout, slots = self.layout, max(slots, self.slots)
            if slots == self.slots:
                return
            takes, prompts = np.arange(self.answering.size), np.arange(layout.prompts)
        else:
            takes, prompts = self._move(layout)
        self.layout, self.slots = layout, slots
        self.rows = rows_.resize(self.rows, takes, prompts, slots=slots)

    def _ring(self, needed: int) -> int:
        sizes = ring_sizes(self.sampling.max_new_tokens)
        return next(size for size in sizes if size >= needed)

    def _rows_needed(self) -> dict[int, int]:
        """Return how many of its rows each prompt still needs."""
        needed = {}
        for prompt in self.prompt_of[self.prompt_of >= 0].tolist():
            answering = self.answering[self.prompt_of == prompt]
            count = int((answering >= 0).sum()) + len(self.waiting[prompt])
            if count:
                needed[prompt] = min(count, answering.size)
        return needed

    def _smaller_layout(self) -> Layout | None:
        """Return the smallest layout that has room for all rows that are needed, None
        if this is the present one."""
        needed = np.array(list(self._rows_needed().values()), int)
        fitting = [
            x
            for x in self.layouts
            if x.prompts * x.share < self.answering.size
            and x.share <= self.layout.share
            and (-(-needed // x.share)).sum() <= x.prompts
        ]
        fewest = min((x.prompts * x.share for x in fitting), default=0)
        return next((x for x in fitting if x.prompts * x.share == fewest), None)

    def _move(self, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        """Give the rows that are needed places in a smaller layout; return where each
        new row and each new prompt is now."""
        old_share = self.layout.share
        takes = np.full(layout, self.answering.size)
        prompts = np.zeros(layout.prompts, int)
        prompt_of, answering = np.full(layout.prompts, -1), np.full(layout, -1)
        place = 0
        for prompt, count in self._rows_needed().items():
            (old,) = np.nonzero(self.prompt_of == prompt)
            live = [
                at * old_share + row
                for at in old
                for row in np.flatnonzero(self.answering[at] >= 0)
            ]
            fits = -(-count // layout.share)
            here = slice(place, place + fits)
            prompt_of[here], prompts[here] = prompt, old[0]
            rows = np.arange(len(live)) + place * layout.share
            takes.reshape(-1)[rows] = live
            answering.reshape(-1)[rows] = self.answering.reshape(-1)[live]
            place += fits
        self.prompt_of, self.answering = prompt_of, answering
        return takes.reshape(-1), prompts

    def _read_begun(self, places: np.ndarray) -> None:
        """Read what there is of responses that go on, into rows at these places."""
        responses = self.responses
        for first in range(0, len(places), self.group):
            at = places[first : first + self.group]
            rest = self.group - len(at)
            which = np.pad(self.answering.reshape(-1)[at], (0, rest), mode="edge")
            lengths = responses.lengths[which]
            width = self._ring(int(lengths.max()))
            slots = np.arange(width) - (width - lengths)[:, None]
            self.rows = rows_.read_responses(
                self.decoder,
                self.rows,
                np.pad(at, (0, rest), constant_values=self.answering.size),
                self.numbers[which].astype(np.int32),
                np.take_along_axis(
                    responses.tokens[which], np.maximum(slots, 0), axis=1
                ),
                slots >= 0,
            )

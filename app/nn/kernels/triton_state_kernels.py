"""The Triton kernels for the state of the rows. torch_state.py describes them, and triton_state.py launches them.

The import of this module imports Triton. A program of `delayed_output` or `frame_output` computes one row and has one
warp. So all loads of a value come before the store that changes it: with several warps, one warp could store the new
value before another warp has loaded the old value.
"""

import triton
import triton.language as tl


@triton.jit
def _embedding(codes, table, lane, mask, CODES: tl.constexpr, VOCAB: tl.constexpr, WIDTH: tl.constexpr):
    """Return the sum of the embeddings of CODES codes, added in float32 in the order of the codes."""
    total = tl.zeros(lane.shape, tl.float32)
    for index in tl.static_range(CODES):
        code = tl.load(codes + index).to(tl.int64) + index * VOCAB
        total += tl.load(table + code * WIDTH + lane, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def delayed_input(
    codes,
    selected,
    speaking,
    positions,
    lengths,
    table,
    x,
    written,
    turned,
    ends,
    codes_row,
    codes_position,
    last,  # the last position of an input
    CHANNELS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK values of the input of both tokens of a row. The first program of a row computes its positions."""
    row = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < WIDTH
    at = tl.minimum(tl.load(positions + row), last)
    total = _embedding(codes + row * codes_row + at * codes_position, table, lane, mask, CHANNELS, VOCAB, WIDTH)
    value = total.to(x.dtype.element_ty)
    tl.store(x + 2 * row * WIDTH + lane, value, mask=mask)
    tl.store(x + (2 * row + 1) * WIDTH + lane, value, mask=mask)
    if tl.program_id(0) == 0:
        active = (tl.load(selected + row) != 0) & (tl.load(speaking + row) != 0)
        key = tl.where(active, at, last + 1)
        tl.store(written + 2 * row, key)
        tl.store(written + 2 * row + 1, key)
        tl.store(turned + 2 * row, tl.minimum(key, last))
        tl.store(turned + 2 * row + 1, tl.minimum(key, last))
        tl.store(ends + row, tl.load(lengths + row) - 1)


@triton.jit
def delayed_output(
    drawn,
    ending,
    finite,
    codes,
    prompts,
    ends,
    delays,
    selected,
    speaking,
    positions,
    draws,
    held,
    first_frames,
    steps,
    frames,
    flags,
    codes_row,
    codes_position,
    frames_step,
    flags_step,
    last,  # the last position of an input
    results,  # number of steps after which the index of the result is 0 again
    DELAY: tl.constexpr,
    END: tl.constexpr,
    PAD: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Apply the delay pattern to the drawn codes of one row, and advance the row if it is active."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, PADDED)
    exists = channel < CHANNELS
    position, step, hold = tl.load(positions + row), tl.load(steps + row), tl.load(held + row)
    drew, speaks = tl.load(draws + row), tl.load(speaking + row)
    final, prompt = tl.load(ends + row), tl.load(prompts + row)
    at = tl.minimum(position, last) + 1
    active = (tl.load(selected + row) != 0) & (speaks != 0)
    code = tl.load(drawn + row * CHANNELS + channel, mask=exists, other=0)
    is_finite = tl.load(finite + row * CHANNELS + channel, mask=exists, other=1).to(tl.int32)
    non_finite = active & (tl.min(is_finite, axis=0) == 0)
    early = active & (tl.load(ending + row) != 0) & (hold > 0) & (tl.min(is_finite, axis=0) != 0)

    drawn_end = active & (tl.sum(tl.where(channel == 0, code, 0), axis=0) == END)
    final = tl.where(drawn_end, tl.minimum(final, at), final)
    delay = tl.load(delays + channel, mask=exists, other=0)
    after = at - final - delay
    code = tl.where(after == 0, END, code)
    code = tl.where(after > 0, PAD, code)
    place = codes + row * codes_row + channel
    before = tl.load(place + at * codes_position, mask=exists, other=0)
    code = tl.where((at <= prompt + delay) | (active == 0), before, code)
    # The codes at `at` are in registers, so do not read them from memory.
    complete = tl.maximum(at - DELAY + delay, 0)
    frame = tl.load(place + complete * codes_position, mask=exists & (complete != at), other=0)
    frame = tl.where(complete == at, code, frame)
    count = final - 1 - prompt
    ended = (count <= 0) | (at + 1 - tl.load(first_frames + row) >= count) | non_finite

    tl.store(ends + row, final)
    tl.store(place + at * codes_position, code, mask=exists)
    result = frames + step * frames_step + row * (CHANNELS + 1)
    tl.store(result + channel, frame.to(tl.int16), mask=exists)
    tl.store(result + CHANNELS, count.to(tl.int16))
    flag = flags + step * flags_step + row * 3
    tl.store(flag, active.to(tl.uint8))
    tl.store(flag + 1, early.to(tl.uint8))
    tl.store(flag + 2, non_finite.to(tl.uint8))
    tl.store(steps + row, (step + 1) % results)
    tl.store(speaking + row, tl.where(active & ended, 0, speaks))
    advanced = active.to(tl.int64)
    tl.store(positions + row, position + advanced)
    tl.store(draws + row, drew + advanced)
    tl.store(held + row, hold - advanced)


@triton.jit
def frame_input(
    selected,
    left,
    positions,
    held,
    written,
    turned,
    banned,
    count,
    last,
    END: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the positions of BLOCK rows, and the codes that they can't draw in codebook 0."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < count
    active = (tl.load(selected + row, mask=mask, other=0) != 0) & (tl.load(left + row, mask=mask, other=0) > 0)
    at = tl.where(active, tl.load(positions + row, mask=mask, other=0), last)
    tl.store(written + row, at, mask=mask)
    tl.store(turned + row, tl.minimum(at, last - 1), mask=mask)
    hold = tl.load(held + row, mask=mask, other=0)
    tl.store(banned + row, tl.where(hold > 0, END, -1), mask=mask)


@triton.jit
def frame_output(
    drawn,
    first,
    final,
    selected,
    positions,
    draws,
    left,
    held,
    codes,
    flags,
    audible,
    drawn_row,
    first_row,
    final_row,
    codes_row,
    END: tl.constexpr,
    CODEBOOKS: tl.constexpr,
    PADDED: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the codes and flags of one row, and advance the row if it is active."""
    row = tl.program_id(0).to(tl.int64)
    position, drew = tl.load(positions + row), tl.load(draws + row)
    remaining, hold = tl.load(left + row), tl.load(held + row)
    active = (tl.load(selected + row) != 0) & (remaining > 0)
    lane = tl.arange(0, BLOCK)
    mask = lane < CODES
    logit = tl.load(final + row * final_row + lane, mask=mask, other=0.0)
    is_finite = tl.min((tl.abs(logit) < float("inf")).to(tl.int32), axis=0) != 0
    logit = tl.load(first + row * first_row + lane, mask=mask, other=float("-inf"))
    early = active & (hold > 0) & (tl.argmax(logit, axis=0) == END) & is_finite

    codebook = tl.arange(0, PADDED)
    exists = codebook < CODEBOOKS
    code = tl.load(drawn + row * drawn_row + codebook, mask=exists, other=0)
    tl.store(codes + row * codes_row + codebook, code.to(tl.int16), mask=exists)
    others = (exists & (code != END)).to(tl.int32)  # codes that are not the end
    is_last = tl.sum(tl.where(codebook < CODEBOOKS - 1, others, 0), axis=0) == 0
    silent = tl.sum(others, axis=0) == 0
    non_finite = active & (is_finite == 0)
    heard = active & (silent == 0) & (non_finite == 0)

    tl.store(audible + row, heard.to(tl.uint8))
    tl.store(flags + row * 4, active.to(tl.uint8))
    tl.store(flags + row * 4 + 1, heard.to(tl.uint8))
    tl.store(flags + row * 4 + 2, early.to(tl.uint8))
    tl.store(flags + row * 4 + 3, non_finite.to(tl.uint8))
    advanced = active.to(tl.int64)
    tl.store(positions + row, position + advanced)
    tl.store(draws + row, drew + advanced)
    tl.store(held + row, hold - advanced)
    tl.store(left + row, tl.where(active & (is_last | non_finite), 0, remaining - advanced))


@triton.jit
def frame_embedding(
    drawn,
    flags,
    table,
    inputs,
    drawn_row,
    CODEBOOKS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK values of the next input of a row, if the row is active."""
    row = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < WIDTH
    if tl.load(flags + row * 4) != 0:
        total = _embedding(drawn + row * drawn_row, table, lane, mask, CODEBOOKS, VOCAB, WIDTH)
        tl.store(inputs + row * WIDTH + lane, total.to(inputs.dtype.element_ty), mask=mask)

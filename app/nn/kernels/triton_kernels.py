"""The Triton kernels. The import of this module imports Triton.

For each row, the attention kernel reads only the cache positions up to the row's position. So later positions may
contain any values.

Early start (programmatic dependent launch, from compute capability 9.0 on): a kernel with PDL starts while the kernel
before it in the stream still runs. Two instructions keep the results correct:

- `gdc_launch_dependents` allows the next kernel to start, when all programs of this kernel have called it. It makes no
  promise about memory.
- `gdc_wait` waits until the kernel before has ended and all its writes are visible.

Each kernel with PDL calls `gdc_wait` before it reads anything that another kernel of the step writes, and before its
first write. Before that, it only requests weights into the L2 cache, and no kernel of a step writes weights. A write
also can't destroy what an earlier kernel still reads: if kernel C follows B and B follows A, then C waits for the end
of B. B ends only after its own `gdc_wait`, so A has ended, too. By the same argument, C sees the writes of A. Kernels
without PDL, such as those of torch, start when all earlier kernels have ended.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _begin(PDL: tl.constexpr):
    """Begin a kernel that needs the results of earlier kernels; see the head of this module."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _request(place, CHUNKS: tl.constexpr):
    """Request values from memory into the L2 cache: CHUNKS times 512 bytes from each of some places.

    A place must be a multiple of 16 bytes.
    """
    if CHUNKS > 0:
        address = place.to(tl.int64)[:, None] + 512 * tl.arange(0, CHUNKS)[None, :]
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], 512; mov.b32 $0, 0;",
            "=r,l",
            [address],
            dtype=tl.int32,
            is_pure=False,  # otherwise the compiler removes it, because the result is not used
            pack=1,
        )


@triton.jit
def attend(
    heads,
    k,
    v,
    cos,
    sin,
    positions,
    # (B, H, d) the result, if there is only one split; if not, the kernel writes `part`, `part_top` and `part_mass`.
    out,
    part,  # (B, H, splits, d) float32: unnormalised sums of values
    part_top,  # (B, H, splits) float32: the largest score, as an exponent of 2
    part_mass,  # (B, H, splits) float32: sum of the softmax weights; 0 for a split without positions
    scale,
    length,  # the kernel reads only positions below this number
    span,  # number of positions in one split
    heads_row,
    heads_head,
    k_row,
    k_group,
    k_position,
    v_row,
    v_group,
    v_position,
    rotary_row,
    GROUPS: tl.constexpr,
    SHARE: tl.constexpr,  # R: number of query heads for one key head
    PADDED: tl.constexpr,  # R rounded up to the size of a matrix instruction
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,  # whether there is only one split
    TURN: tl.constexpr,  # whether to apply RoPE
    FRESH: tl.constexpr,  # whether to write the token's key and value into the cache; then TURN is true
    PDL: tl.constexpr,
):
    """Compute attention for one key head of one row: its R query heads attend to one split of the row's positions.

    A split is a range of consecutive positions. `combine` combines the results of all splits, as in flash-decoding.
    Uses online softmax (Milakov and Gimelshein 2018).
    """
    _begin(PDL)
    split = tl.program_id(0)
    group = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    position = tl.load(positions + row).to(tl.int32)
    share = tl.arange(0, PADDED)
    lane = tl.arange(0, SIZE)
    mask = share < SHARE
    head = group * SHARE + share
    heads += row * heads_row
    k += row * k_row + group * k_group
    v += row * v_row + group * v_group

    query = tl.load(heads + head[:, None] * heads_head + lane[None, :], mask=mask[:, None], other=0.0)
    if TURN:
        other_half = (lane + SIZE // 2) % SIZE
        cosine = tl.load(cos + row * rotary_row + lane)
        sine = tl.load(sin + row * rotary_row + lane)
        swapped = tl.load(heads + head[:, None] * heads_head + other_half[None, :], mask=mask[:, None], other=0.0)
        rotated = query.to(tl.float32) * cosine[None, :] + swapped.to(tl.float32) * sine[None, :]
        query = rotated.to(heads.dtype.element_ty)
    query = query.to(k.dtype.element_ty)

    top = tl.full((PADDED,), float("-inf"), tl.float32)
    mass = tl.zeros((PADDED,), tl.float32)
    total = tl.zeros((PADDED, SIZE), tl.float32)
    power = scale * _LOG2_E
    end = tl.minimum(tl.minimum((split + 1) * span, length), position + 1)
    if FRESH:
        # The key and value of the new token are in registers, so do not read them from the cache.
        end = tl.minimum(end, position)
        if split == 0:
            mine = heads + (GROUPS * SHARE + group) * heads_head
            key = tl.load(mine + lane).to(tl.float32) * cosine + tl.load(mine + other_half).to(tl.float32) * sine
            key = key.to(heads.dtype.element_ty).to(k.dtype.element_ty)
            value = tl.load(mine + GROUPS * heads_head + lane).to(v.dtype.element_ty)
            tl.store(k + position * k_position + lane, key)
            tl.store(v + position * v_position + lane, value)
            top = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], axis=1) * power
            mass += 1.0
            total += value.to(tl.float32)[None, :]

    for start in range(split * span, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        valid = at < end
        keys = tl.load(k + at[:, None] * k_position + lane[None, :], mask=valid[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * power
        scores = tl.where(valid[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        values = tl.load(v + at[:, None] * v_position + lane[None, :], mask=valid[:, None], other=0.0)
        mass = mass * shrink + tl.sum(weights, axis=1)
        total = total * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        top = higher

    place = row * GROUPS * SHARE + head
    if WHOLE:
        whole = total / mass[:, None]
        tl.store(out + place[:, None] * SIZE + lane[None, :], whole.to(out.dtype.element_ty), mask=mask[:, None])
    else:
        place = place * tl.num_programs(0) + split
        tl.store(part_top + place, top, mask=mask)
        tl.store(part_mass + place, mass, mask=mask)
        tl.store(part + place[:, None] * SIZE + lane[None, :], total, mask=mask[:, None])


@triton.jit
def combine(part, part_top, part_mass, out, splits, SIZE: tl.constexpr, PADDED: tl.constexpr, PDL: tl.constexpr):
    """Combine the results of all splits for one head of one row."""
    _begin(PDL)
    place = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, PADDED)
    lane = tl.arange(0, SIZE)
    mass = tl.load(part_mass + place * splits + split, mask=split < splits, other=0.0)
    nonempty = mass > 0
    top = tl.load(part_top + place * splits + split, mask=nonempty, other=float("-inf"))
    weight = tl.exp2(top - tl.max(top, axis=0))
    totals = tl.load(part + (place * splits + split)[:, None] * SIZE + lane[None, :], mask=nonempty[:, None], other=0.0)
    whole = tl.sum(totals * weight[:, None], axis=0) / tl.sum(mass * weight, axis=0)
    tl.store(out + place * SIZE + lane, whole.to(out.dtype.element_ty))


@triton.jit
def window_attend(
    heads,  # (B, T, H + 2 G, d)
    k,
    v,
    cos,  # (B, T, d)
    sin,
    done,  # (B,): the position of the first new token
    out,  # (B, T, H, d)
    scale,
    ring,  # number of entries of a ring buffer
    window,
    k_row,
    k_group,
    k_entry,
    v_row,
    v_group,
    v_entry,
    TOKENS: tl.constexpr,  # T
    GROUPS: tl.constexpr,
    SHARE: tl.constexpr,  # number of query heads for one key head
    PADDED: tl.constexpr,  # T * SHARE rounded up to the size of a matrix instruction
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute sliding-window attention of T new tokens for one key head of one row, with online softmax.

    The keys and values of the new tokens come from registers. Their entries in the ring buffer held positions that are
    no longer in the window of any new token, so no program reads an entry that it writes.
    """
    group = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    begin = tl.load(done + row).to(tl.int32)
    query = tl.arange(0, PADDED)
    token = query // SHARE
    mask = token < TOKENS
    lane = tl.arange(0, SIZE)
    other_half = (lane + SIZE // 2) % SIZE
    width = (GROUPS * SHARE + 2 * GROUPS) * SIZE
    heads += row * TOKENS * width
    cos += row * TOKENS * SIZE
    sin += row * TOKENS * SIZE
    k += row * k_row + group * k_group
    v += row * v_row + group * v_group

    place = token[:, None] * width + (group * SHARE + query % SHARE)[:, None] * SIZE
    cosine = tl.load(cos + token[:, None] * SIZE + lane[None, :], mask=mask[:, None], other=0.0)
    sine = tl.load(sin + token[:, None] * SIZE + lane[None, :], mask=mask[:, None], other=0.0)
    queries = tl.load(heads + place + lane[None, :], mask=mask[:, None], other=0.0) * cosine
    queries += tl.load(heads + place + other_half[None, :], mask=mask[:, None], other=0.0) * sine

    top = tl.full((PADDED,), float("-inf"), tl.float32)
    mass = tl.zeros((PADDED,), tl.float32)
    total = tl.zeros((PADDED, SIZE), tl.float32)
    power = scale * _LOG2_E
    for index in tl.static_range(TOKENS):
        mine = heads + index * width + (GROUPS * SHARE + group) * SIZE
        key = tl.load(mine + lane) * tl.load(cos + index * SIZE + lane)
        key += tl.load(mine + other_half) * tl.load(sin + index * SIZE + lane)
        value = tl.load(mine + GROUPS * SIZE + lane)
        entry = (begin + index) % ring
        tl.store(k + entry * k_entry + lane, key)
        tl.store(v + entry * v_entry + lane, value)
        score = tl.where(token >= index, tl.sum(queries * key[None, :], axis=1) * power, float("-inf"))
        higher = tl.maximum(top, score)
        weight = tl.exp2(score - higher)
        shrink = tl.exp2(top - higher)
        mass = mass * shrink + weight
        total = total * shrink[:, None] + weight[:, None] * value[None, :]
        top = higher

    for start in range(0, tl.minimum(begin, ring), BLOCK):
        entries = start + tl.arange(0, BLOCK)
        # the position of the key in an entry before this step; negative = no key yet
        position = begin - 1 - (begin - 1 - entries + ring) % ring
        exists = (entries < ring) & (position >= 0) & (position > begin - window)
        keys = tl.load(k + entries[:, None] * k_entry + lane[None, :], mask=exists[:, None], other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * power
        valid = exists[None, :] & (position[None, :] > (begin + token)[:, None] - window)
        scores = tl.where(valid, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        values = tl.load(v + entries[:, None] * v_entry + lane[None, :], mask=exists[:, None], other=0.0)
        mass = mass * shrink + tl.sum(weights, axis=1)
        total = total * shrink[:, None] + tl.dot(weights, values, input_precision="ieee")
        top = higher

    place = ((row * TOKENS + token) * GROUPS * SHARE + group * SHARE + query % SHARE)[:, None] * SIZE + lane[None, :]
    tl.store(out + place, total / mass[:, None], mask=mask[:, None])


@triton.jit
def conv_window(
    x,  # (B, T, C)
    past,  # (B, R, C)
    new,  # (B, R, C)
    out,  # (B, T, kernel, C)
    past_row,
    new_row,
    TOKENS: tl.constexpr,  # T
    REACH: tl.constexpr,  # R
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    CHANNELS: tl.constexpr,
    ELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK values of the windows of one row and of its next `past`."""
    row = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    windows = TOKENS * KERNEL * CHANNELS
    channel = place % CHANNELS
    index = place // CHANNELS
    # the index of the value in `past` and x, one after the other
    at = tl.where(place < windows, index // KERNEL + (index % KERNEL) * DILATION, TOKENS + index - TOKENS * KERNEL)
    exists = place < windows + REACH * CHANNELS
    before = tl.load(past + row * past_row + at * CHANNELS + channel, mask=exists & (at < REACH), other=0.0)
    value = x + row * TOKENS * CHANNELS + (at - REACH) * CHANNELS + channel
    value = tl.load(value, mask=exists & (at >= REACH), other=0.0)
    if ELU:
        value = tl.where(value > 0, value, tl.exp(tl.minimum(value, 0.0)) - 1.0)
    value = tl.where(at < REACH, before, value)
    tl.store(out + row * windows + place, value, mask=place < windows)
    tl.store(new + row * new_row + place - windows, value, mask=exists & (place >= windows))


@triton.jit
def overlap_block(
    spread,
    overlap,
    new,
    bias,
    out,  # (B, T, s, C)
    spread_row,
    spread_token,
    spread_block,
    spread_place,
    spread_channel,
    overlap_row,
    new_row,
    TOKENS: tl.constexpr,  # T
    STRIDE: tl.constexpr,  # s
    CHANNELS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK values of the outputs of one row and of its next overlap."""
    row = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = STRIDE * CHANNELS
    token = place // size
    within = place % size
    channel = within % CHANNELS
    exists = token <= TOKENS  # the last block is the next overlap
    source = spread + row * spread_row + within // CHANNELS * spread_place + channel * spread_channel
    value = tl.load(overlap + row * overlap_row + within, mask=token == 0, other=0.0)
    late = source + (token - 1) * spread_token + spread_block
    value = tl.where(token == 0, value, tl.load(late, mask=exists & (token > 0), other=0.0))
    tl.store(new + row * new_row + within, value, mask=token == TOKENS)
    value = tl.load(source + token * spread_token, mask=token < TOKENS, other=0.0) + value
    if BIAS:
        value += tl.load(bias + channel)
    tl.store(out + row * TOKENS * size + place, value, mask=token < TOKENS)


@triton.jit
def add_layer(
    x, update, weight, bias, normed, summed, eps, ADDS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute the sum of one token and its update, and the LayerNorm of the sum."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    mask = lane < WIDTH
    total = tl.load(x + token * WIDTH + lane, mask=mask, other=0.0)
    if ADDS:
        total += tl.load(update + token * WIDTH + lane, mask=mask, other=0.0)
        tl.store(summed + token * WIDTH + lane, total, mask=mask)
    centred = tl.where(mask, total - tl.sum(total, axis=0) / WIDTH, 0.0)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    scaled = centred * inverse * tl.load(weight + lane, mask=mask, other=0.0)
    scaled += tl.load(bias + lane, mask=mask, other=0.0)
    tl.store(normed + token * WIDTH + lane, scaled, mask=mask)


@triton.jit
def add_norm(x, residual, weight, normed, summed, x_row, residual_row, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the sum of one token and its residual, and the RMSNorm of the sum."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    mask = lane < WIDTH
    first = tl.load(x + token * x_row + lane, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(residual + token * residual_row + lane, mask=mask, other=0.0).to(tl.float32)
    total = (first + second).to(summed.dtype.element_ty)
    tl.store(summed + token * WIDTH + lane, total, mask=mask)
    wide = total.to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    scaled = wide * inverse * tl.load(weight + lane, mask=mask, other=0.0).to(tl.float32)
    tl.store(normed + token * WIDTH + lane, scaled.to(normed.dtype.element_ty), mask=mask)


@triton.jit
def gated(both, out, both_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr):
    """Compute one block of one token's gated activation (SwiGLU or GEGLU)."""
    token = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < WIDTH
    first = tl.load(both + token * both_row + lane, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(both + token * both_row + WIDTH + lane, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + lane, _gate(first, up, out.dtype.element_ty, SILU), mask=mask)


@triton.jit
def _gate(first, up, DTYPE: tl.constexpr, SILU: tl.constexpr):
    """Return activation(first) * up in DTYPE. Rounds to DTYPE after the activation and after the product."""
    active = first / (1.0 + tl.exp(-first)) if SILU else 0.5 * first * (1.0 + tl.erf(first * 0.7071067811865476))
    return (active.to(DTYPE).to(tl.float32) * up).to(DTYPE)


@triton.jit
def _tokens(x, update, token, lane, mask, rows, x_row, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """Load values of all tokens, and add the update: the sum of its PARTS parts, always in the same order."""
    values = tl.load(x + token[:, None] * x_row + lane[None, :], mask=mask, other=0.0)
    if PARTS > 0:
        place = update + token[:, None] * WIDTH + lane[None, :]
        added = tl.load(place, mask=mask, other=0.0)
        for part in tl.static_range(1, PARTS):
            added += tl.load(place + part * rows * WIDTH, mask=mask, other=0.0)
        values = (values.to(tl.float32) + added.to(values.dtype).to(tl.float32)).to(values.dtype)
    return values


@triton.jit(do_not_specialize=["rows"])
def norm_product(
    x,
    update,  # (PARTS, M, K) float32: added to x before the norm
    norm,
    weight,  # (N, K), and (2 N, K) with a gate
    scales,  # (N,) or (2 N,) float32: of the outputs of a weight in fp8
    summed,  # (M, K): x + update. Only written if there is an update
    out,  # (M, N)
    rows,  # M
    x_row,
    eps,
    WIDTH: tl.constexpr,  # K
    OUTPUTS: tl.constexpr,  # N
    PARTS: tl.constexpr,  # number of parts of the update; 0 = there is no update
    GATE: tl.constexpr,  # whether the first N rows of the weight are the gate of the other N rows
    SILU: tl.constexpr,
    SCALED: tl.constexpr,  # whether the weight is in fp8
    EARLY: tl.constexpr,  # whether tokens are divided by their length before the product, and not after it
    TOKENS: tl.constexpr,  # M rounded up, always to the same number: so a token has the same sums for any M
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
    CHUNKS: tl.constexpr,  # with PDL: number of blocks of 512 bytes of each row of the weight to request early
):
    """Compute COLUMNS outputs of all tokens: rms_norm(x + update) times the weight, and the gate.

    The norm divides by a number that is the same for all values of a token. So the product can begin before this number
    is known, and is divided at the end. With float16 the undivided values could be too large.
    """
    token = tl.arange(0, TOKENS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows_of_weight = weight + column.to(tl.int64)[:, None] * WIDTH
    exists = column[:, None] < OUTPUTS
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        requested = weight + tl.minimum(column, OUTPUTS - 1).to(tl.int64) * WIDTH
        _request(requested, CHUNKS)
        if GATE:
            _request(requested + OUTPUTS * WIDTH, CHUNKS)
        tl.extra.cuda.gdc_wait()
    squares = tl.zeros((TOKENS,), tl.float32)
    inverse = squares + 1.0
    if EARLY:
        for start in range(0, WIDTH, BLOCK):
            lane = start + tl.arange(0, BLOCK)
            mask = (token[:, None] < rows) & (lane[None, :] < WIDTH)
            wide = _tokens(x, update, token, lane, mask, rows, x_row, WIDTH, PARTS).to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
        inverse = 1.0 / tl.sqrt_rn(squares / WIDTH + eps)
    total = tl.zeros((COLUMNS, TOKENS), tl.float32)
    total_up = tl.zeros((COLUMNS, TOKENS), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        lane = start + tl.arange(0, BLOCK)
        mask = (token[:, None] < rows) & (lane[None, :] < WIDTH)
        values = _tokens(x, update, token, lane, mask, rows, x_row, WIDTH, PARTS)
        if PARTS > 0:
            tl.store(summed + token[:, None] * WIDTH + lane[None, :], values, mask=mask & (tl.program_id(0) == 0))
        wide = values.to(tl.float32)
        if not EARLY:
            squares += tl.sum(wide * wide, axis=1)
        scale = tl.load(norm + lane, mask=lane < WIDTH, other=0.0).to(tl.float32)
        scaled = tl.trans((wide * inverse[:, None] * scale[None, :]).to(x.dtype.element_ty))
        valid = exists & (lane[None, :] < WIDTH)
        part = tl.load(rows_of_weight + lane[None, :], mask=valid, other=0.0)
        total = tl.dot(part.to(x.dtype.element_ty), scaled, total, input_precision="ieee")
        if GATE:
            part = tl.load(rows_of_weight + OUTPUTS * WIDTH + lane[None, :], mask=valid, other=0.0)
            total_up = tl.dot(part.to(x.dtype.element_ty), scaled, total_up, input_precision="ieee")
    if SCALED:
        total *= tl.load(scales + column, mask=column < OUTPUTS, other=0.0)[:, None]
        if GATE:
            total_up *= tl.load(scales + OUTPUTS + column, mask=column < OUTPUTS, other=0.0)[:, None]
    if not EARLY:
        inverse = 1.0 / tl.sqrt_rn(squares / WIDTH + eps)
        total = total * inverse[None, :]
        total_up = total_up * inverse[None, :]
    result = total.to(x.dtype.element_ty)
    if GATE:
        up = total_up.to(x.dtype.element_ty).to(tl.float32)
        result = _gate(result.to(tl.float32), up, x.dtype.element_ty, SILU)
    place = out + token[None, :] * OUTPUTS + column[:, None]
    tl.store(place, result.to(out.dtype.element_ty), mask=exists & (token[None, :] < rows))


@triton.jit(do_not_specialize=["rows"])
def sum_product(
    x,
    weight,
    scales,  # (N,) float32: of the outputs of a weight in fp8
    residual,
    constant,  # (M / EVERY, N): replaces the product for the tokens that have no row in x
    out,  # (M, N), or (PARTS, M, N) float32 if the sums are divided into parts
    rows,  # M
    x_row,
    residual_row,
    constant_row,
    span,  # number of inputs in one part of a sum
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EVERY: tl.constexpr,  # row t of x belongs to token EVERY * t
    WHOLE: tl.constexpr,  # whether sums have one part; then the residual is added
    SCALED: tl.constexpr,  # whether the weight is in fp8
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
    CHUNKS: tl.constexpr,  # see `norm_product`
):
    """Compute one part of the sums of COLUMNS outputs of all tokens: x times the weight, plus the residual."""
    token = tl.arange(0, TOKENS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    exists = column[:, None] < OUTPUTS
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        start = tl.minimum(split * span, WIDTH - CHUNKS * 4096 // weight.dtype.element_ty.primitive_bitwidth)
        _request(weight + tl.minimum(column, OUTPUTS - 1).to(tl.int64) * WIDTH + start, CHUNKS)
        tl.extra.cuda.gdc_wait()
    multiplied = (token < rows) & (token % EVERY == 0)
    total = tl.zeros((COLUMNS, TOKENS), tl.float32)
    for start in range(split * span, tl.minimum((split + 1) * span, WIDTH), BLOCK):
        lane = start + tl.arange(0, BLOCK)
        mask = multiplied[:, None] & (lane[None, :] < WIDTH)
        values = tl.load(x + (token // EVERY)[:, None] * x_row + lane[None, :], mask=mask, other=0.0)
        place = weight + column.to(tl.int64)[:, None] * WIDTH + lane[None, :]
        part = tl.load(place, mask=exists & (lane[None, :] < WIDTH), other=0.0)
        total = tl.dot(part.to(x.dtype.element_ty), tl.trans(values), total, input_precision="ieee")
    if SCALED:
        total *= tl.load(scales + column, mask=column < OUTPUTS, other=0.0)[:, None]
    mask = exists & (token[None, :] < rows)
    if EVERY > 1:
        place = constant + (token // EVERY)[None, :] * constant_row + column[:, None]
        fixed = tl.load(place, mask=mask & ~multiplied[None, :] & (split == 0), other=0.0)
        total += fixed.to(tl.float32)
    if WHOLE:
        before = tl.load(residual + token[None, :] * residual_row + column[:, None], mask=mask, other=0.0)
        total = total.to(before.dtype).to(tl.float32) + before.to(tl.float32)
    place = out + (split * rows + token)[None, :] * OUTPUTS + column[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _mix(x):
    """Hash uint64 values with the finaliser of splitmix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _ordered(score):
    """Map float32 to uint32 so that the order of the values stays the same. -0 is below +0."""
    bits = score.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _score(key):
    """Map uint32 back to float32: the inverse of `_ordered`."""
    return tl.where(key >> 31 == 1, key & 0x7FFFFFFF, key ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _kth(score, mask, limit):
    """Return the score with the rank `limit`. Finds it with a binary search over the bits of the scores."""
    key = tl.where(mask, _ordered(score), 0)
    kth = tl.cast(0, tl.uint32)
    bit = tl.cast(1 << 30, tl.uint32)
    for _ in range(16):
        # Each pass finds two bits of `kth`. For each of three candidates, it counts the keys that are at least as large
        # as the candidate. One sum contains the three counts.
        counts = (key >= kth + bit).to(tl.int64)
        counts += (key >= kth + 2 * bit).to(tl.int64) << 20
        counts += (key >= kth + 3 * bit).to(tl.int64) << 40
        reached = tl.sum(counts, axis=0)
        steps = (reached & 0xFFFFF) >= limit
        steps = steps.to(tl.uint32) + (((reached >> 20) & 0xFFFFF) >= limit).to(tl.uint32)
        steps += ((reached >> 40) >= limit).to(tl.uint32)
        kth += steps * bit
        bit >>= 2
    return _score(kth)


@triton.jit
def _drawn(score, lane, mask, temperature, limit, share, seed, frame, codebook, CODES: tl.constexpr):
    """Draw a code from scores that are -inf for codes that can't be drawn, without a sort.

    The code with the largest ratio of weight and noise is drawn. Top-k and top-p need no limits: the drawn code is kept
    if fewer than k codes have a higher score, and if the codes with at most its score have enough weight. If it is not
    kept, all codes with at most its score are not kept either, and the next largest ratio is drawn. With usual
    parameters, one or two draws are enough. Only top-p of the codes that top-k keeps needs the limit of top-k.
    """
    if temperature <= 0:
        code = tl.argmax(score, axis=0)
    else:
        score = tl.div_rn(score, tl.zeros_like(score) + temperature)
        limited = (limit > 0) & (limit < CODES)
        if limited & (share < 1):
            score = tl.where(score < _kth(score, mask, limit), float("-inf"), score)
            limited = limit < 0
        weight = tl.exp(score - tl.max(score, axis=0))
        allowed = (1 - share) * tl.sum(weight, axis=0) if share < 1 else -1.0
        state = _mix(_mix(seed.to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15 + 1) + frame * 0x9E3779B97F4A7C15)
        count = (codebook.to(tl.int64) * CODES + 1 + lane).to(tl.uint64)
        bits = (_mix(state + count * 0x9E3779B97F4A7C15) >> 40).to(tl.uint32)
        # The upper limit is 1 - 2^-24. Without the limit, 24 bits that are all 1 would round to 1.0, and -log(1.0) is
        # -0.0.
        uniform = tl.minimum((bits.to(tl.float32) + 0.5) * 5.9604644775390625e-8, 0.999999940395355224609375)
        # A code that can't be drawn has the weight 0. Such a code gets -1, so it is never chosen.
        ratio = tl.where(mask & (weight > 0), weight / -tl.log(uniform), -1.0)
        code = tl.cast(0, tl.int32)
        removed = True
        while removed:
            best, code = tl.max(ratio, axis=0, return_indices=True)
            mine = tl.max(tl.where(lane == code, score, float("-inf")), axis=0)
            above = tl.sum((score > mine).to(tl.int32), axis=0)
            removed = limited & (above >= limit)
            if share < 1:
                removed |= (above > 0) & (tl.sum(tl.where(score <= mine, weight, 0.0), axis=0) <= allowed)
            removed &= best > 0  # otherwise the row has NaN or infinite values
            ratio = tl.where(score <= mine, -1.0, ratio)
    return tl.minimum(code, CODES - 1).to(tl.int64)


@triton.jit
def draw(
    logits,
    temperatures,
    top_ks,
    top_ps,
    seeds,
    frames,
    banned,
    out,
    table,  # (V, D): the embeddings of the codes
    embedded,  # (n, D)
    codebook,
    logits_row,
    logits_channel,
    CHANNELS: tl.constexpr,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,  # D; 0 = `embedded` is not written
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Draw one code of one row, and copy its embedding."""
    _begin(PDL)
    place = tl.program_id(0)
    row = place // CHANNELS
    channel = place % CHANNELS
    lane = tl.arange(0, BLOCK)
    mask = lane < CODES
    logits += row.to(tl.int64) * logits_row + channel * logits_channel
    score = tl.load(logits + lane, mask=mask, other=float("-inf"))
    score = tl.where(lane == tl.load(banned + place), float("-inf"), score)
    temperature, limit, share = tl.load(temperatures + row), tl.load(top_ks + row), tl.load(top_ps + row)
    seed, frame = tl.load(seeds + row), tl.load(frames + row).to(tl.uint64, bitcast=True)
    code = _drawn(score, lane, mask, temperature, limit, share, seed, frame, codebook + channel, CODES)
    tl.store(out + place, code)
    for begin in tl.static_range(0, WIDTH, BLOCK):
        at = begin + lane
        value = tl.load(table + code * WIDTH + at, mask=at < WIDTH, other=0.0)
        tl.store(embedded + row.to(tl.int64) * WIDTH + at, value, mask=at < WIDTH)


@triton.jit
def _guided(
    logit,
    other,
    lane,
    mask,
    scale,
    limit,
    first,
    suppressed,
    CODES: tl.constexpr,
    END: tl.constexpr,
    CONDITIONAL: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Return the scores of one channel, see `torch_kernels.guided_scores`, and whether END is the best code."""
    at_end = first & (lane == END)
    hidden = at_end & suppressed
    guided = tl.where(hidden, float("-inf"), logit + scale * (logit - other))
    if CONDITIONAL:
        score = logit
        if (limit > 0) & (limit < CODES):
            score = tl.where(guided < _kth(guided, mask, limit), float("-inf"), score)
        score = tl.where(hidden, float("-inf"), score)
    else:
        score = tl.where(at_end, guided * FACTOR, guided)
    score = tl.where(mask & ((lane < END) | at_end), score, float("-inf"))
    ending = first & (tl.argmax(score, axis=0) == END)
    removed = at_end & (ending == 0)
    if CONDITIONAL:
        removed |= (lane < END) & ending
    return tl.where(removed, float("-inf"), score), ending


@triton.jit
def guided_draw(
    logits,  # (n, 2, C, V)
    scales,
    temperatures,
    top_ks,
    top_ps,
    seeds,
    frames,
    suppressed,  # (n,): above 0 = END is suppressed
    out,
    endings,
    finite,
    CHANNELS: tl.constexpr,
    CODES: tl.constexpr,
    END: tl.constexpr,
    CONDITIONAL: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Draw one code of one row with classifier-free guidance."""
    _begin(PDL)
    place = tl.program_id(0)
    row = place // CHANNELS
    channel = place % CHANNELS
    lane = tl.arange(0, BLOCK)
    mask = lane < CODES
    start = logits + (row.to(tl.int64) * 2 * CHANNELS + channel) * CODES
    logit = tl.load(start + lane, mask=mask, other=0.0)
    other = tl.load(start + CHANNELS * CODES + lane, mask=mask, other=0.0)
    is_finite = (tl.abs(logit) < float("inf")) & (tl.abs(other) < float("inf"))
    tl.store(finite + place, tl.min(is_finite.to(tl.int32), axis=0).to(tl.uint8))
    scale, limit, first = tl.load(scales + row), tl.load(top_ks + row), channel == 0
    score, ending = _guided(logit, other, lane, mask, scale, limit, first, False, CODES, END, CONDITIONAL, FACTOR)
    if first:
        tl.store(endings + row, ending.to(tl.uint8))
        if tl.load(suppressed + row) > 0:
            score, _ = _guided(logit, other, lane, mask, scale, limit, first, True, CODES, END, CONDITIONAL, FACTOR)
    if CONDITIONAL:
        limit = limit * 0  # top-k is already applied
    temperature, share = tl.load(temperatures + row), tl.load(top_ps + row)
    seed, frame = tl.load(seeds + row), tl.load(frames + row).to(tl.uint64, bitcast=True)
    code = _drawn(score, lane, mask, temperature, limit, share, seed, frame, channel, CODES)
    tl.store(out + place, code)

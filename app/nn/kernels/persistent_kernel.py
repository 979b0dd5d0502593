"""The Triton kernel that computes all steps of a depth decoder in one launch. The import of this module imports Triton.

The launch has one program for each multiprocessor of the GPU, and all programs run at the same time. A step consists of
phases. In each phase, a program computes a part of the outputs of one operation, for example some of the outputs of a
matrix product. All programs wait for each other between two phases, because a phase reads what other programs have
written in the phase before: a program counts its arrival (`_arrive`), and waits until all have arrived (`_wait`).

Memory order. The values that programs exchange are in global memory. Four rules make each value visible to its readers:
1. `tl.debug_barrier` before the arrival: the stores of all threads of a program come before the arrival.
2. The arrival is an atomic addition with release semantics for the whole GPU, so these stores are visible to every
   program that sees the arrival.
3. A program waits with an atomic addition of 0 with acquire semantics. So no load of the next phase can take place
   before the program has seen the arrivals of all programs. All threads of a program wait for the result.
4. Loads of exchanged values have the cache modifier ".cg": they read the cache that all multiprocessors share (L2). The
   cache of one multiprocessor (L1) may contain an older value.

A launch always ends. If a program waits much longer than a phase can take, for example because a fault keeps another
program from its arrival, it ends the waits of all programs. Then the codes are invalid, and the logits of all rows get
a NaN, which ends the rows.

Weights are constant. So a program requests the first weights of the next phase between its arrival and its wait, and
the weights come during the wait. Before the arrival, these requests would delay it: a release also waits for earlier
loads. Each output has one sum, which one program computes in an order that depends only on the shapes. Therefore the
results depend neither on the number of programs nor on the other rows.
"""

import triton
import triton.language as tl

from app.nn.kernels.triton_kernels import _LOG2_E, _drawn, _gate

# The table of addresses contains, for each layer, the addresses of these weights. After the layers come the final norm
# and the heads.
_ATTENTION_NORM = tl.constexpr(0)
_QKV = tl.constexpr(1)
_OUT = tl.constexpr(2)
_MLP_NORM = tl.constexpr(3)
_GATE_UP = tl.constexpr(4)
_DOWN = tl.constexpr(5)
_EACH = tl.constexpr(6)  # number of addresses of one layer
_GIVEN_UP = tl.constexpr(1 << 30)  # the counter has at least this value after a program has given up its wait


@triton.jit
def _arrive(counter):
    """Count the arrival of this program. `counter` is 0 at the start of the launch."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def _wait(counter, arrivals, POLLS: tl.constexpr):
    """Wait until the programs have arrived `arrivals` times in total, or until a program gives up.

    A program gives up after POLLS reads of the counter: then the counter gets a value that ends all waits.
    """
    polls = 0
    while (tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals) & (polls < POLLS):
        polls += 1
    if polls == POLLS:
        tl.atomic_max(counter, _GIVEN_UP, sem="relaxed", scope="gpu")


@triton.jit
def _weight(addresses, index, like):
    """Return the pointer at an index of the table of addresses. All weights begin at a multiple of 16 bytes."""
    return tl.multiple_of(tl.load(addresses + index).to(like.dtype), 16)


@triton.jit
def _norm(norm, WIDTH: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr):
    """Load the weight of an RMSNorm: (SPLITS, 1, LANES)."""
    k = tl.arange(0, SPLITS)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]
    return tl.load(norm + k, mask=k < WIDTH, other=0.0)


@triton.jit
def _tile(
    weight,
    first,
    end,
    chunk,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GATED: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Load the weights of some outputs, from `first` on and before `end`, for one chunk of inputs.

    The result is (SPLITS, COLUMNS, LANES), and 0 for outputs and inputs that do not exist. With a gate, the first half
    of the columns are the gates of the outputs, and the second half are the values that the gates multiply.
    """
    column = tl.arange(0, COLUMNS)
    output = column % (COLUMNS // 2) if GATED else column
    row = output + (column // (COLUMNS // 2)) * OUTPUTS if GATED else output
    k = tl.arange(0, SPLITS)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]
    mask = (output < end - first)[None, :, None] & (k < WIDTH - chunk * (SPLITS * LANES))
    begin = weight + tl.cast(first, tl.int64) * WIDTH + chunk * (SPLITS * LANES)
    return tl.load(begin + (row[None, :, None] * WIDTH + k), mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def _tokens(x, rows, chunk, WIDTH: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr):
    """Load one chunk of the values of all tokens: (SPLITS, TOKENS, LANES), and 0 after the last row and value."""
    token = tl.arange(0, TOKENS)[None, :, None]
    k = tl.arange(0, SPLITS)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]
    before = chunk * (SPLITS * LANES)
    mask = (token < rows) & (k < WIDTH - before)
    return tl.load(x + before + (token * WIDTH + k), mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def _normed(x, norm, rows, eps, WIDTH: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr):
    """Load all tokens and apply RMSNorm: (SPLITS, TOKENS, LANES) in the dtype of x. norm: the result of `_norm`."""
    wide = _tokens(x, rows, 0, WIDTH, TOKENS, SPLITS, LANES).to(tl.float32)
    squares = tl.sum(tl.sum(wide * wide, axis=2), axis=0)
    inverse = 1.0 / tl.sqrt_rn(squares / WIDTH + eps)
    return (wide * inverse[None, :, None] * norm.to(tl.float32)).to(x.dtype.element_ty)


@triton.jit
def _product(
    tokens,  # (SPLITS, TOKENS, LANES): the inputs of all tokens, if READY
    x,  # (M, WIDTH): the inputs, if not READY
    tile,  # the weights of the first outputs and the first chunk, from `_tile`
    weight,
    out,  # (M, OUTPUTS)
    first,
    end,
    rows,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    READY: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    ADD: tl.constexpr,  # whether the product is added to `out`
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute the outputs from `first` on and before `end`: the inputs times the weight, for all tokens.

    A sum has SPLITS parts, which different warps compute. The parts are added at the end, always in the same order.
    While a tile is multiplied, the next one comes from memory.
    """
    WIDE: tl.constexpr = COLUMNS // 2 if GATED else COLUMNS
    DTYPE: tl.constexpr = x.dtype.element_ty
    token = tl.arange(0, TOKENS)
    for at in range(first, end, WIDE):
        total = tl.zeros((SPLITS, TOKENS, COLUMNS), tl.float32)
        for chunk in range(CHUNKS):
            done = (chunk + 1) // CHUNKS  # 1 in the last chunk
            following = _tile(
                weight,
                at + WIDE * done,
                end,
                (chunk + 1) * (1 - done),
                WIDTH,
                OUTPUTS,
                GATED,
                SPLITS,
                COLUMNS,
                LANES,
            )
            inputs = tokens if READY else _tokens(x, rows, chunk, WIDTH, TOKENS, SPLITS, LANES)
            total = tl.dot(inputs, tl.permute(tile, (0, 2, 1)), total, input_precision="ieee")
            tile = following
        result = tl.sum(total, axis=0).to(DTYPE)
        if GATED:
            gate, up = tl.split(tl.permute(tl.reshape(result, (TOKENS, 2, WIDE)), (0, 2, 1)))
            result = _gate(gate.to(tl.float32), up.to(tl.float32), DTYPE, SILU)
        output = at + tl.arange(0, WIDE)
        place = out + token[:, None] * OUTPUTS + output[None, :]
        mask = (token < rows)[:, None] & (output < end)[None, :]
        if ADD:
            before = tl.load(place, mask=mask, other=0.0, cache_modifier=".cg")
            result = (result.to(tl.float32) + before.to(tl.float32)).to(DTYPE)
        tl.store(place, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rotated(head, lane, cosine, sine, mask, SIZE: tl.constexpr):
    """Load values of heads and apply RoPE, in float32. head: the begin of each head. lane: numbers of the values."""
    value = tl.load(head + lane, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    swapped = tl.load(head + (lane + SIZE // 2) % SIZE, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    return value * cosine + swapped * sine


@triton.jit
def _attend(
    heads,
    k,
    v,
    cos,
    sin,
    out,
    group,
    position,
    scale,
    k_position,
    v_position,
    GROUPS: tl.constexpr,
    SHARE: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """Write the key and value of a token, and compute attention of the query heads that share one key head.

    heads: the heads of the token. k, v: the cache of the key head. out: the result of the token. The new key and value
    stay in registers; only those of earlier positions are read from the cache, which has at most LENGTH positions.
    """
    lane = tl.arange(0, SIZE)
    share = tl.arange(0, PADDED)
    mask = (share < SHARE)[:, None]
    cosine, sine = tl.load(cos + position * SIZE + lane), tl.load(sin + position * SIZE + lane)
    mine = heads + (GROUPS * SHARE + group) * SIZE
    key = _rotated(mine, lane, cosine, sine, lane < SIZE, SIZE).to(heads.dtype.element_ty).to(k.dtype.element_ty)
    value = tl.load(mine + GROUPS * SIZE + lane, cache_modifier=".cg").to(v.dtype.element_ty)
    tl.store(k + position * k_position + lane, key)
    tl.store(v + position * v_position + lane, value)
    head = group * SHARE + share
    query = _rotated((heads + head * SIZE)[:, None], lane[None, :], cosine[None, :], sine[None, :], mask, SIZE)
    query = query.to(heads.dtype.element_ty).to(k.dtype.element_ty)
    at = tl.arange(0, LENGTH)
    earlier = (at < position)[:, None]
    keys = tl.load(k + at[:, None] * k_position + lane[None, :], mask=earlier, other=0.0, cache_modifier=".cg")
    values = tl.load(v + at[:, None] * v_position + lane[None, :], mask=earlier, other=0.0, cache_modifier=".cg")
    power = scale * _LOG2_E
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * power
    scores = tl.where((at < position)[None, :], scores, float("-inf"))
    own = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], axis=1) * power
    top = tl.maximum(own, tl.max(scores, axis=1))
    weights = tl.exp2(scores - top[:, None])
    own = tl.exp2(own - top)
    total = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    total = (total + own[:, None] * value.to(tl.float32)[None, :]) / (tl.sum(weights, axis=1) + own)[:, None]
    tl.store(out + head[:, None] * SIZE + lane[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _part(program, programs, OUTPUTS: tl.constexpr):
    """Return the first output of a program, and the end of its outputs."""
    span = (OUTPUTS + programs - 1) // programs
    return program * span, tl.minimum((program + 1) * span, OUTPUTS)


@triton.jit
def _code(
    logits,
    temperatures,
    top_ks,
    top_ps,
    seeds,
    frames,
    row,
    codebook,
    CODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw the code of one row. logits: those of the row."""
    lane = tl.arange(0, BLOCK)
    mask = lane < CODES
    score = tl.load(logits + lane, mask=mask, other=float("-inf"), cache_modifier=".cg")
    temperature, limit, share = tl.load(temperatures + row), tl.load(top_ks + row), tl.load(top_ps + row)
    seed, frame = tl.load(seeds + row), tl.load(frames + row).to(tl.uint64, bitcast=True)
    codebook = tl.cast(codebook, tl.int32)
    return _drawn(score, lane, mask, temperature, limit, share, seed, frame, codebook, CODES)


@triton.jit(do_not_specialize=["rows"])
def depth_frame(
    addresses,  # see _ATTENTION_NORM
    table,  # (STEPS - 1) * VOCAB inputs of the codes of all codebooks except the last
    x,  # (M, WIDTH): the inputs of position 0. Overwritten
    first,  # (M,) int64: the codes of the first codebook
    codes,  # (M, STEPS) int64: the result
    logits,  # (M, CODES) float32: at the end those of the last codebook, or NaN if a program gave up its wait
    heads,  # from here on: memory for results of phases
    attended,
    hidden,
    counter,  # int32: 0
    k,  # (LAYERS, M, GROUPS, S, SIZE)
    v,
    cos,  # (S, SIZE) float32
    sin,
    temperatures,
    top_ks,
    top_ps,
    seeds,
    frames,
    rows,  # M
    eps,
    scale,
    k_layer,
    k_row,
    k_group,
    k_position,
    v_layer,
    v_row,
    v_group,
    v_position,
    STEPS: tl.constexpr,  # number of codebooks
    LAYERS: tl.constexpr,
    WIDTH: tl.constexpr,
    FFN: tl.constexpr,
    GROUPS: tl.constexpr,  # number of key heads
    SHARE: tl.constexpr,  # number of query heads for one key head
    PADDED: tl.constexpr,  # SHARE rounded up to the size of a matrix instruction
    SIZE: tl.constexpr,
    LENGTH: tl.constexpr,  # number of positions, rounded up
    CODES: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,  # CODES rounded up
    SILU: tl.constexpr,
    TOKENS: tl.constexpr,  # M rounded up, always to the same number: so a row has the same sums for any M
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,  # SPLITS * LANES inputs are one chunk: of a product after a norm
    OUT_LANES: tl.constexpr,  # of the product after attention
    DOWN_LANES: tl.constexpr,  # of the product after the gate
    COLUMNS: tl.constexpr,  # number of outputs in one tile: of a product after a norm
    FEW: tl.constexpr,  # of the other products, which have fewer outputs
    POLLS: tl.constexpr,  # see `_wait`
):
    """Compute the codes of one frame of each row.

    At position 0, the decoder reads `x`, and then the input of the first code. At position i, it draws the code of
    codebook i and reads the input of this code.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    HEADS: tl.constexpr = GROUPS * (SHARE + 2) * SIZE
    ATTENDED: tl.constexpr = GROUPS * SHARE * SIZE
    OUT_CHUNKS: tl.constexpr = (ATTENDED + SPLITS * OUT_LANES - 1) // (SPLITS * OUT_LANES)
    DOWN_CHUNKS: tl.constexpr = (FFN + SPLITS * DOWN_LANES - 1) // (SPLITS * DOWN_LANES)
    # the outputs that this program computes: of qkv, of the products with FEW columns, of the gate, and of a head
    qkv_first, qkv_end = _part(program, programs, HEADS)
    out_first, out_end = _part(program, programs, WIDTH)
    gate_first, gate_end = _part(program, programs, FFN)
    code_first, code_end = _part(program, programs, CODES)

    weight = _weight(addresses, _QKV, x)
    tile = _tile(weight, qkv_first, qkv_end, 0, WIDTH, HEADS, False, SPLITS, COLUMNS, LANES)
    norm = _norm(_weight(addresses, _ATTENTION_NORM, x), WIDTH, SPLITS, LANES)
    arrivals = programs
    # The compiler must not move the addresses of all phases before these loops: the registers are too small for them.
    for step in tl.range(STEPS, disable_licm=True):
        for layer in tl.range(LAYERS, disable_licm=True):
            mine = addresses + layer * _EACH

            # RMSNorm and the product for queries, keys and values
            tokens = _normed(x, norm, rows, eps, WIDTH, TOKENS, SPLITS, LANES)
            _product(
                tokens, x, tile, weight, heads, qkv_first, qkv_end, rows,
                WIDTH, HEADS, 1, True, False, SILU, False, TOKENS, SPLITS, COLUMNS, LANES,
            )  # fmt: skip
            _arrive(counter)
            weight = _weight(mine, _OUT, x)
            out_tile = _tile(weight, out_first, out_end, 0, ATTENDED, WIDTH, False, SPLITS, FEW, OUT_LANES)
            _wait(counter, arrivals, POLLS)

            # RoPE and attention
            for task in range(program, rows * GROUPS, programs):
                row = task // GROUPS
                group = task % GROUPS
                _attend(
                    heads + row * HEADS,
                    k + tl.cast(layer, tl.int64) * k_layer + tl.cast(row, tl.int64) * k_row + group * k_group,
                    v + tl.cast(layer, tl.int64) * v_layer + tl.cast(row, tl.int64) * v_row + group * v_group,
                    cos, sin, attended + row * ATTENDED, group, step, scale, k_position, v_position,
                    GROUPS, SHARE, PADDED, SIZE, LENGTH,
                )  # fmt: skip
            _arrive(counter)
            _wait(counter, arrivals + programs, POLLS)

            # the product with the result of attention, added to x
            _product(
                tokens, attended, out_tile, weight, x, out_first, out_end, rows,
                ATTENDED, WIDTH, OUT_CHUNKS, False, False, SILU, True, TOKENS, SPLITS, FEW, OUT_LANES,
            )  # fmt: skip
            _arrive(counter)
            weight = _weight(mine, _GATE_UP, x)
            tile = _tile(weight, gate_first, gate_end, 0, WIDTH, FFN, True, SPLITS, COLUMNS, LANES)
            norm = _norm(_weight(mine, _MLP_NORM, x), WIDTH, SPLITS, LANES)
            _wait(counter, arrivals + 2 * programs, POLLS)

            # RMSNorm, the product for the gate, and the gate
            tokens = _normed(x, norm, rows, eps, WIDTH, TOKENS, SPLITS, LANES)
            _product(
                tokens, x, tile, weight, hidden, gate_first, gate_end, rows,
                WIDTH, FFN, 1, True, True, SILU, False, TOKENS, SPLITS, COLUMNS, LANES,
            )  # fmt: skip
            _arrive(counter)
            weight = _weight(mine, _DOWN, x)
            down_tile = _tile(weight, out_first, out_end, 0, FFN, WIDTH, False, SPLITS, FEW, DOWN_LANES)
            _wait(counter, arrivals + 3 * programs, POLLS)

            # the product with the result of the gate, added to x
            _product(
                tokens, hidden, down_tile, weight, x, out_first, out_end, rows,
                FFN, WIDTH, DOWN_CHUNKS, False, False, SILU, True, TOKENS, SPLITS, FEW, DOWN_LANES,
            )  # fmt: skip
            _arrive(counter)
            # The next phase is the next layer, or the head after the last layer. Step 0 has no head.
            after = (layer + 1) // LAYERS
            weight = _weight(addresses, (layer + 1) * _EACH + after * step + (1 - after) * _QKV, x)
            next_first = after * code_first + (1 - after) * qkv_first
            next_end = after * code_end * tl.minimum(step, 1) + (1 - after) * qkv_end
            tile = _tile(weight, next_first, next_end, 0, WIDTH, HEADS, False, SPLITS, COLUMNS, LANES)
            norm = _norm(_weight(mine, _EACH, x), WIDTH, SPLITS, LANES)
            _wait(counter, arrivals + 4 * programs, POLLS)
            arrivals += 5 * programs

        # the final norm and the head
        tokens = _normed(x, norm, rows, eps, WIDTH, TOKENS, SPLITS, LANES)
        _product(
            tokens, x, tile, weight, logits, code_first, code_end * tl.minimum(step, 1), rows,
            WIDTH, CODES, 1, True, False, SILU, False, TOKENS, SPLITS, COLUMNS, LANES,
        )  # fmt: skip
        _arrive(counter)
        _wait(counter, arrivals, POLLS)

        # the draw, and the input of the drawn code
        for row in range(program, rows, programs):
            if step == 0:
                code = tl.load(first + row)
            else:
                code = _code(
                    logits + row * CODES, temperatures, top_ks, top_ps, seeds, frames, row, step,
                    CODES, BLOCK,
                )  # fmt: skip
            tl.store(codes + row * STEPS + step, code)
            if step + 1 < STEPS:
                lane = tl.arange(0, SPLITS * LANES)
                value = tl.load(table + (code + step * VOCAB) * WIDTH + lane, mask=lane < WIDTH, other=0.0)
                tl.store(x + row * WIDTH + lane, value.to(x.dtype.element_ty), mask=lane < WIDTH)
        _arrive(counter)
        more = 1 - (step + 1) // STEPS  # 0 in the last step
        weight = _weight(addresses, _QKV, x)
        tile = _tile(weight, qkv_first, qkv_end * more, 0, WIDTH, HEADS, False, SPLITS, COLUMNS, LANES)
        norm = _norm(_weight(addresses, _ATTENTION_NORM, x), WIDTH, SPLITS, LANES)
        _wait(counter, arrivals + programs, POLLS)
        arrivals += 2 * programs

    if tl.atomic_add(counter, 0, sem="acquire", scope="gpu") >= _GIVEN_UP:
        for row in range(rows):
            tl.store(logits + row * CODES, float("nan"))

"""Slow and obvious versions of decoding, projection and matching: one text at a time, no cache, plain loops."""

from dataclasses import replace

import torch


def next_logits(lm, ids):
    """Logits (V,) of the token after `ids`: the whole sequence through the whole model."""
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def decode_slowly(lm, prompts, labels, steps, pick):
    """`pick(t, row, logits)` returns the token to write and the token to show; returns the written ones."""
    written = []
    for row, label in enumerate(labels):
        seen, out = list(prompts[label]), []
        for t in range(steps):
            token, shown = pick(t, row, next_logits(lm, seen))
            out.append(int(token))
            seen.append(int(shown))
        written.append(out)
    return written


def draw_slowly(probabilities, uniform, top_p):
    """Inverse-CDF draw from the nucleus, in Python floats."""
    ranked = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    nucleus, mass = [], 0.0
    for token in ranked:
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += probabilities[token]
    below = 0.0
    for token in nucleus:
        below += probabilities[token]
        if below > uniform * mass:
            return token
    return nucleus[-1]


def draw_by_rejection_slowly(probabilities, uniforms, top_p):
    """The first draw from all that is in the nucleus; the last number draws from the nucleus itself."""
    total = sum(probabilities)
    for uniform in uniforms[:-1]:
        below, token = 0.0, -1
        while below <= uniform * total:
            token += 1
            below += probabilities[token]
        if sum(p for p in probabilities if p > probabilities[token]) < top_p:
            return token
    return draw_slowly(probabilities, uniforms[-1], top_p)


def half_squared_distance(metric, vector, embedding):
    """Between the vectors, or for the cosine between their directions, where it is 1 - cos."""
    vector, embedding = vector.double(), embedding.double()
    if metric == "cosine":
        vector, embedding = vector / vector.norm(), embedding / embedding.norm()
    return float((vector - embedding).square().sum()) / 2


def candidates(t, length, allowed, ends, starts):
    """Tokens that may stand at position t of a text of this length."""
    tokens = [token for token in range(len(allowed)) if allowed[token]]
    if t == 0:
        return [token for token in tokens if starts is None or starts[0][token]]
    closing = [token for token in tokens if ends is not None and ends[token]]
    return closing if closing and t == length - 1 else tokens


def proximal_worth(config, half_square, logp):
    """What `proximal` maximises."""
    return logp - config.nearness * half_square


def best_token(config, tokens, far, probable):
    """The choice among `tokens`, given dicts of half squared distances and of log-probabilities."""
    if config.order == "nearest_then_probable":
        return max(sorted(tokens, key=far.get)[: config.k], key=probable.get)
    if config.order == "probable_then_nearest":
        return min(sorted(tokens, key=probable.get, reverse=True)[: config.k], key=far.get)
    return max(tokens, key=lambda token: proximal_worth(config, far[token], probable[token]))


def project_slowly(lm, prompts, vectors, lengths, labels, config, allowed, ends=None, starts=None):
    """Tokens of each text, cut at its length."""

    def pick(t, row, logits):
        tokens = candidates(t, lengths[row], allowed, ends, starts)
        heard = starts[1] if t == 0 and starts is not None else range(len(allowed))
        logp = torch.log_softmax(logits.double(), -1).tolist()
        far = {j: half_squared_distance(config.metric, vectors[row][t], lm.embeddings_VE[j]) for j in tokens}
        token = best_token(config, tokens, far, {j: logp[int(heard[j])] for j in tokens})
        return token, heard[token]

    rows = decode_slowly(lm, prompts, labels, max(lengths), pick)
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def log_perplexity_slowly(lm, ids, bos):
    """Mean negative log-likelihood per token (nats)."""
    full = [*([] if bos is None else [bos]), *ids]
    with torch.no_grad():
        logp = torch.log_softmax(lm.model(input_ids=torch.tensor([full])).logits[0].double(), -1)
    values = [-float(logp[i, token]) for i, token in enumerate(full[1:])]
    return sum(values) / len(values)


def head_gradient(lm, embeds_SE, label_ids):
    """Gradient of the label's loss for one rendered text, by autograd on a copy of the head: (V, D), (V,).

    `embeds_SE` are those of all tokens but the last label token.
    """
    weight = lm.head.weight_VD.clone().requires_grad_()
    given = lm.head.bias_V
    bias = torch.zeros(len(weight)) if given is None else given.clone()
    head = replace(lm.head, weight_VD=weight, bias_V=bias.requires_grad_())
    with torch.no_grad():
        hidden_SD = lm.body(inputs_embeds=embeds_SE[None], use_cache=False).last_hidden_state[0]
    logits = head(hidden_SD[-len(label_ids) :])[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(label_ids), reduction="sum")
    return torch.autograd.grad(loss, (head.weight_VD, head.bias_V))


def text_gradient(lm, task, text_ids, label, vectors=None):
    """Of one text, whose token embeddings may be replaced by vectors."""
    before, after = task.prefix_ids, [*task.suffix_ids, *task.label_ids[label][:-1]]
    parts = [lm.embeddings_VE[torch.tensor(ids, dtype=torch.long)] for ids in (before, text_ids, after)]
    embeds_SE = torch.cat([parts[0], parts[1] if vectors is None else vectors, parts[2]])
    return head_gradient(lm, embeds_SE, task.label_ids[label])


def mean_gradient(gradients):
    """Of several texts."""
    return tuple(torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True))


def distance_slowly(config, mine, theirs, has_bias):
    """D between two materialised gradients (weight, bias)."""
    pairs = list(zip(mine, theirs, strict=True))
    groups = {"ignore": [pairs[:1]], "separate": [pairs[:1], pairs[1:]], "joint": [pairs]}
    if config.name == "tag":
        pairs = pairs if has_bias and config.bias != "ignore" else pairs[:1]
        return sum(float((a - b).square().sum() + config.tag_factor * (a - b).abs().sum()) for a, b in pairs)
    values = []
    for group in groups[config.bias if has_bias else "ignore"]:
        a = torch.cat([mine.flatten() for mine, _ in group]).double()
        b = torch.cat([theirs.flatten() for _, theirs in group]).double()
        if config.name == "cosine":
            values.append(1 - float(torch.nn.functional.cosine_similarity(a, b, dim=0)))
        else:
            values.append(float((a - b).square().sum() / b.square().sum()))
    return sum(values) / len(values)

"""Token reduction once more, one token at a time, in plain Python: what the tensor functions are compared with.

A token is a position; a prompt's features and branches are lists of lists. Sequential merging is done as the paper
writes it, pair by pair, without a closed form.
"""

import math


def cosine(x, y):
    norm = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    return sum(v * w for v, w in zip(x, y, strict=True)) / norm if norm else 0.0


def unprotected(count, plan):
    return [n for n in range(count) if not (plan.protect_first and n == 0) and n < count - plan.protect_last]


def removed_count(count, ratio, candidates):
    return min(count - math.ceil(round(count * ratio, 6)), len(candidates) // 2)


def pairs_of(sources, targets, features, count):
    """The `count` most similar pairs (similarity, source, target), the most similar first."""
    best = []
    for a in sources:
        target = None
        for b in targets:
            if target is None or cosine(features[a], features[b]) > cosine(features[a], features[target]):
                target = b
        best.append((cosine(features[a], features[target]), a, target))
    best.sort(key=lambda pair: (-pair[0], pair[1]))
    return [(a, b) for _, a, b in best[:count]]


def utrc(features, importance, plan, ratio):
    """What UTRC does: removed in merging order, their destinations, and which of them a hybrid prunes."""
    candidates = unprotected(len(features), plan)
    ranked = sorted(candidates, key=lambda n: (importance[n], n))
    half = len(candidates) // 2
    removed = removed_count(len(features), ratio, candidates)
    pairs = pairs_of(sorted(ranked[:half]), sorted(ranked[half:]), features, removed)
    order = [a for a, _ in pairs]
    pruned = sorted(order, key=lambda a: (importance[a], order.index(a)))[: math.floor(round(plan.q * removed, 6))]
    return pairs, set(pruned)


def branch(rows, pairs, pruned, rule):
    """A branch after pairwise merging (or dropping), in original order."""
    rows = [list(row) for row in rows]
    for a, b in pairs:
        if rule == "merge" or (rule == "hybrid" and a not in pruned):
            rows[b] = [(x + y) / 2 for x, y in zip(rows[a], rows[b], strict=True)]
    gone = {a for a, _ in pairs}
    return [row for n, row in enumerate(rows) if n not in gone]


def averaged(rows, pairs, pruned=frozenset()):
    """A branch whose destinations become the mean of themselves and all that goes into them."""
    out = [list(row) for row in rows]
    for b in {b for _, b in pairs}:
        members = [rows[b]] + [rows[a] for a, target in pairs if target == b and a not in pruned]
        out[b] = [sum(values) / len(members) for values in zip(*members, strict=True)]
    gone = {a for a, _ in pairs}
    return [row for n, row in enumerate(out) if n not in gone]


def pumer(features, plan, ratio):
    candidates = unprotected(len(features), plan)
    return pairs_of(candidates[1::2], candidates[::2], features, removed_count(len(features), ratio, candidates))


def ltmp(features, importance, plan, ratio):
    candidates = unprotected(len(features), plan)
    removed = removed_count(len(features), ratio, candidates)
    dropped = sorted(candidates, key=lambda n: (importance[n], n))[: math.floor(round(plan.q * removed, 6))]
    left = [n for n in candidates if n not in dropped]
    return pairs_of(left[1::2], left[::2], features, removed - len(dropped)), dropped


def official_hidden(rows, removed):
    """The released code's hidden branch: the larger half of each channel's sources, averaged with position 1."""
    out = [list(row) for row in rows]
    for channel in range(len(rows[0])):
        values = sorted((rows[2 * i][channel] for i in range(removed)), reverse=True)[: removed // 2]
        out[1][channel] = (rows[1][channel] + sum(values)) / (removed + 1)
    return [row for n, row in enumerate(out) if n % 2 or n >= 2 * removed]

"""The result of a run as a table for the terminal."""

# Networks of a result, in the order of the rows.
_NETWORKS = ("baseline", "searched")


def table(result: dict) -> str:
    """Return a run's `result.json` as a table with its verdict."""
    lines = [f"{'':10}{'depths':>16}{'GMACs':>8}{'params M':>10}{'AP':>8}{'AP50':>8}{'AP75':>8}"]
    for network in _NETWORKS:
        row = result[network]
        metrics = "".join(f"{100 * (row[name] or 0):8.1f}" for name in ("AP", "AP50", "AP75"))
        depths = str(row["arch"]["depths"])
        lines.append(
            f"{network:10}{depths:>16}{row['flops'] / 1e9:8.3f}{row['params'] / 1e6:10.3f}{metrics}"
        )
    difference, (low, high) = result["difference"]["AP"], result["difference"]["ci95"]
    verdict = (
        "not distinguishable" if low <= 0 <= high else ("better" if difference > 0 else "worse")
    )
    lines.append(f"dilations of the searched network: {result['searched']['arch']['dilations']}")
    lines.append(
        f"difference in AP {100 * difference:+.1f}, 95 % interval over test images "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]: {verdict}"
    )
    return "\n".join(lines)

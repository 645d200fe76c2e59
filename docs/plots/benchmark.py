import tempfile

import st_predict as stp

simulated = stp.datasets.simulate(6, 1, n_genes=12, shape=(960, 960), mpp=1.6)
with tempfile.TemporaryDirectory() as out:
    table = stp.cohort.cross_validate(
        simulated.sections,
        ["ridge", "position", "neighbours", "log_total"],
        out=out,
        panel=12,
        panel_method="mean",
    )

stp.pl.benchmark(table)

import tempfile

import st_predict as stp

simulated = stp.datasets.simulate(3, 1, n_genes=12, shape=(960, 960), mpp=1.6)
train, *others = simulated.sections.values()
genes = list(train["table"].var_names)
slides = {"patient 2": others[0], "patient 3": others[1]}
with tempfile.TemporaryDirectory() as out:
    result = stp.tl.train(train, "ridge", panel=genes, out=out)
    stp.tl.predict(slides, result)

stp.pl.cohort(slides, "GENE07")

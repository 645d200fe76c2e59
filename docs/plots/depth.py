import tempfile

import st_predict as stp

simulated = stp.datasets.simulate(2, 1, n_genes=12, shape=(960, 960), mpp=1.6)
train, test = simulated.sections.values()
genes = list(train["table"].var_names)
with tempfile.TemporaryDirectory() as out:
    result = stp.tl.train(train, "ridge", panel=genes, out=out)
    stp.tl.predict(test, result)

stp.pl.depth(stp.tl.evaluate(test))

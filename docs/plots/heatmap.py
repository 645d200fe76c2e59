import tempfile

import st_predict as stp

simulated = stp.datasets.simulate(3, 1, n_genes=12, shape=(800, 800), mpp=1.8)
train, *tests = simulated.sections.values()
genes = list(train["table"].var_names)
with tempfile.TemporaryDirectory() as out:
    result = stp.tl.train(train, "ridge", panel=genes, out=out)
    stp.tl.predict(tests, result)

stp.pl.heatmap(stp.tl.evaluate(tests), metrics=["partial", "pearson", "morans_i"])

import st_predict as stp

simulated = stp.datasets.simulate(1, 1, n_genes=12, shape=(960, 960), mpp=1.6)
sdata = simulated.sections["P1S1"]

stp.pl.crops(sdata, stp.models.get_spec("m2ost").crop, spot="P1S1_3x5")

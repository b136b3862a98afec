# %% [markdown]
# # First steps
#
# A small synthetic data set from the model and the reviews that ship in the package: no network, no GPU.
# This file is a notebook of cells (`# %%`): VS Code, PyCharm, Spyder and Jupytext open it as one, Python runs it.

# %%
import gradmm

model = gradmm.load_model("demo")
rows = gradmm.load_data("demo")
rows

# %% [markdown]
# ## Write ten texts per class
#
# Everything is kept in a run folder. Interrupt the cell whenever you like: run again, it goes on.

# %%
config = gradmm.GenerateConfig(texts_per_class=10)
result = gradmm.generate(model, "sst2", rows, config, output_dir="first-steps")
result

# %% [markdown]
# ## How good are they?
#
# Nearer to the bottom left is better: the mean gradient is nearer to that of the real rows, and the model finds
# the texts more probable. Real rows and the model's own samples are there to compare with.

# %%
axes = result.plot()

# %%
frame = result.to_pandas()
frame.groupby("label_name")[["log_perplexity", "label_score"]].mean()

# %% [markdown]
# ## The same as one page
#
# Texts to search and sort, the course of the run, a map of the gradients: opens offline, in any browser.

# %%
page = gradmm.write_report([result.run_dir])
page

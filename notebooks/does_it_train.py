# %% [markdown]
# # Does it train?
#
# A synthetic data set is worth what a model learns from it. Here the packaged model is fine-tuned on synthetic
# texts and on as many real rows, and tested on real rows that had no part in either.

# %%
import gradmm

model = gradmm.load_model("demo")
rows = gradmm.load_data("demo")


def part(start, stop):
    """Rows from here to there of every class."""
    names = rows.label_names
    return [
        {"text": text, "label": names[label]}
        for label in range(rows.num_classes)
        for text in rows.texts_of(label)[start:stop]
    ]


seen, test = part(0, 80), part(80, 120)

# %%
config = gradmm.GenerateConfig(texts_per_class=20)
result = gradmm.generate(model, "sst2", seen, config, output_dir="does-it-train")
result

# %% [markdown]
# ## Two training sets of the same size

# %%
sets = {"synthetic": result.to_dataset(), "real rows": part(0, 20)}
settings = gradmm.TrainConfig(max_steps=40, learning_rate=3e-4)

accuracy = {"before": gradmm.evaluate(model, "sst2", test).accuracy}
for name, own in sets.items():
    trained = gradmm.train(model, "sst2", own, settings)
    accuracy[name] = gradmm.evaluate(trained.model, "sst2", test).accuracy
accuracy

# %% [markdown]
# One seed and forty test rows per class prove little: the interval is twenty points wide. `gradmm compare` repeats
# this over seeds, budgets and methods, and says how sure the differences are.

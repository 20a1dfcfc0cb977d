import tensorflow as tf

import adabatch_jax as ab

plan = ab.make_plan("4 x2 every 1ep", num_examples=30, duration="3ep")


def loader(epoch):
    dataset = tf.data.Dataset.range(30).map(lambda i: {"x": i})
    return dataset.shuffle(30, seed=epoch).batch(7).prefetch(2)


seen = [batch["x"] for batch in ab.rebatch(loader, plan, start_step=0)]

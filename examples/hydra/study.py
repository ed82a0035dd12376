"""A scaling study that is described by config.yaml: python study.py [key=value ...]"""
import sys

from hydra import compose, initialize
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scaling_nb import Problem, load_study, plan_sweep, run_sweep
from scaling_nb.zoo.data import TokenWindows, byte_tokens, stdlib_text
from scaling_nb.zoo.gpt import GPT, next_token_loss


def main(overrides):
    with initialize(version_base=None, config_path="."):
        cfg = compose("config", overrides)
    model, plan = OmegaConf.to_container(cfg.model), OmegaConf.to_container(cfg.plan)
    recipe, resources = instantiate(cfg.recipe, _convert_="all"), instantiate(cfg.resources)

    train, val = (TokenWindows(byte_tokens(part), seq_len=cfg.model.seq_len, bytes_per_token=1) for part in stdlib_text())
    problem = Problem(GPT, "width", data=train, val_data=val, val_samples=512, loss_fn=next_token_loss, model_kwargs=model)
    plan = plan_sweep(problem, recipe=recipe, **plan)
    print(plan)
    run_sweep(problem, plan, storage=cfg.storage, resources=resources, mock=cfg.mock)

    study = load_study(cfg.storage)
    print(study, study.predict(cfg.answer_at), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])

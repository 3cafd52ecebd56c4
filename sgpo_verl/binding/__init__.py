"""The only folder that imports verl, torch, ray or vllm. Rules of a method do not live here."""

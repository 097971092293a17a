"""The deployment in front of all models: the web page, model list, pipelines and the Open Inference Protocol."""

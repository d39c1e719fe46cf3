PYTHON ?= python3
BIN := .venv/bin
CONFIG := configs/quickstart/retina_unet_clinical.yaml
OUTPUT := output/quickstart
RESULTS := $(OUTPUT)/inference/phantom_clinical_test
# Compiling Detectron2's focal loss by TorchScript takes ten seconds, more than it saves in a short run.
export PYTORCH_JIT ?= 0
# On a loaded machine, spinning OpenMP threads slow each other down a hundredfold.
export OMP_WAIT_POLICY ?= PASSIVE
export DETECTRON2_DATASETS ?= $(CURDIR)/datasets
PHANTOM := $(DETECTRON2_DATASETS)/phantom_clinical
PREDICTED := output/predict
SCANS := $(PREDICTED)/scans

# For a machine with a GPU: its Python version, the packages it has, and the folder of wheels for the rest.
GPU_PYTHON ?= 3.12
GPU_HAS ?= torch torchvision
WHEELS ?= wheels
FOUND_WHEELS = $(wildcard $(WHEELS)/*.whl)

.PHONY: demo predict install test faults lint docs tutorial overview benchmark gpu-check gpu-wheels
.DELETE_ON_ERROR:

# Train a lesion detector on phantoms, evaluate it on held-out patients, and draw its detections.
demo: $(RESULTS)/pictures/contact_sheet.png
	$(BIN)/python -m lesion_d2.tools.show_results $(OUTPUT) --dataset phantom_clinical_test

# Run the demo's model on the scan of another phantom patient, as DICOM and as NIfTI.
predict: $(RESULTS)/froc.json $(SCANS)/phantom.nii.gz
	$(BIN)/python -m lesion_d2.tools.predict --config-file $(CONFIG) \
		--input $(SCANS)/dicom $(SCANS)/phantom.nii.gz --output $(PREDICTED)/findings \
		--operating-points $(RESULTS)/froc.json --fps-per-image 0.5 \
		MODEL.WEIGHTS $(OUTPUT)/model_best.pth

install: .venv/installed

# One process per core, with work stealing. Bytecode is cached even if PYTHONDONTWRITEBYTECODE is set,
# because compiling the imports takes seconds in each process.
test: export PYTHONDONTWRITEBYTECODE =
test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal --durations 10

# Test 5,000 malformed files and 500 killed runs; FAULTS="--kills 50 --seed 1" changes the options.
faults: install
	$(BIN)/python -m tests.faults $(FAULTS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Build the documentation site; broken links and warnings are errors.
docs: export NO_MKDOCS_2_WARNING := 1
docs: .venv/docs
	$(BIN)/mkdocs build --strict --quiet
	@echo output/site/index.html

# Execute the notebook; the result with outputs is output/tutorial.ipynb.
tutorial: .venv/docs
	$(BIN)/jupyter nbconvert --to notebook --execute docs/tutorial.ipynb --output-dir output

# Draw the picture of the README from the demo's evaluation.
overview: $(RESULTS)/pictures/contact_sheet.png
	$(BIN)/python docs/site/overview_picture.py $(RESULTS) --output docs/overview.png

benchmark: install
	$(BIN)/python -m lesion_d2.experiments.benchmark

# Tests and timings on a GPU (docs/gpu.md); GPU_CHECK="--device cpu --tiny" tests the check on a CPU.
gpu-check: $(if $(FOUND_WHEELS),.gpu/installed,install)
	$(if $(FOUND_WHEELS),PYTHONPATH=$(CURDIR)/.gpu:$(CURDIR) $(PYTHON),$(BIN)/python) \
		-m lesion_d2.experiments.gpu_check $(GPU_CHECK)

gpu-wheels: install
	$(BIN)/python -m lesion_d2.experiments.gpu_check.wheels --output $(WHEELS) --python $(GPU_PYTHON) \
		--has $(GPU_HAS)

# Installed into a separate folder; the packages of that Python do not change.
.gpu/installed: $(FOUND_WHEELS)
	rm -rf .gpu
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --target .gpu $^
	touch $@

# Reading __version__ tells an installed Detectron2 from a folder named detectron2, such as a clone.
.venv/installed: setup.py requirements-detectron2.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e ".[scans,test]"
	$(BIN)/python -c "import detectron2; detectron2.__version__" 2>/dev/null || \
		$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements-detectron2.txt
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install -q -e ".[docs]"
	touch $@

$(PHANTOM)/phantom.json: | install
	$(BIN)/python datasets/prepare_phantom.py --root $(PHANTOM) --preset clinical

# Resumes an interrupted training, or starts from the beginning if its inputs have changed.
$(OUTPUT)/trained: $(CONFIG) configs/quickstart/retina_unet_phantom.yaml \
		configs/Base-RetinaUNet.yaml $(PHANTOM)/phantom.json | install
	if [ -f $(OUTPUT)/inputs.sha256 ] && ! sha256sum $^ | cmp -s - $(OUTPUT)/inputs.sha256; \
		then rm -r $(OUTPUT); fi
	mkdir -p $(OUTPUT)
	sha256sum $^ > $(OUTPUT)/inputs.sha256
	$(BIN)/python train_net.py --config-file $(CONFIG) --resume OUTPUT_DIR $(OUTPUT)
	touch $@

$(RESULTS)/froc.json: $(OUTPUT)/trained
	$(BIN)/python train_net.py --config-file $(CONFIG) --eval-only OUTPUT_DIR $(OUTPUT) \
		MODEL.WEIGHTS $(OUTPUT)/model_best.pth DATASETS.TEST "('phantom_clinical_test',)"

$(RESULTS)/pictures/contact_sheet.png: $(RESULTS)/froc.json
	$(BIN)/python -m lesion_d2.tools.visualize predictions --dataset phantom_clinical_test \
		--results $(RESULTS)/coco_instances_results.json

# The NIfTI file is written last, so it marks a complete scan.
$(SCANS)/phantom.nii.gz: datasets/prepare_phantom_scan.py | install
	rm -rf $(SCANS)
	$(BIN)/python datasets/prepare_phantom_scan.py --output $(SCANS)

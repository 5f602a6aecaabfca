"""The model class: registration, construction and training; prediction and inspection are mixins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi._base import single_precision
from cfmvc_scvi._constants import AUTO, CFMVC_KEYS
from cfmvc_scvi._messages import shortened, unknown_choice
from cfmvc_scvi.flow import get_coupling
from cfmvc_scvi.model.compare import ComparisonMixin
from cfmvc_scvi.model.data_module import check_registry
from cfmvc_scvi.model.design import DesignMixin
from cfmvc_scvi.model.persist import PersistenceMixin
from cfmvc_scvi.model.programs import ProgramMixin
from cfmvc_scvi.model.query import QueryMixin
from cfmvc_scvi.model.rank import RankingMixin
from cfmvc_scvi.model.report import ReportMixin
from cfmvc_scvi.model.represent import RepresentationMixin
from cfmvc_scvi.model.resources import ResourceMixin
from cfmvc_scvi.model.sample_effects import SampleEffectMixin
from cfmvc_scvi.model.screen import ScreenMixin
from cfmvc_scvi.model.screen_report import ScreenReportMixin
from cfmvc_scvi.model.training import TrainingMixin
from cfmvc_scvi.model.trajectory import TrajectoryMixin
from cfmvc_scvi.prediction.generate import GenerationMixin
from cfmvc_scvi.registration.registration import Registration

#: Where the flow may start.
FLOW_SOURCES = ("control", "noise")


class CFMVC(  # pyright: ignore[reportIncompatibleMethodOverride]  # scvi-tools' mixins and ours: ours come first
    TrainingMixin,
    QueryMixin,
    ResourceMixin,
    RepresentationMixin,
    ReportMixin,
    ScreenReportMixin,
    ComparisonMixin,
    SampleEffectMixin,
    TrajectoryMixin,
    DesignMixin,
    ScreenMixin,
    RankingMixin,
    GenerationMixin,
    ProgramMixin,
    PersistenceMixin,
):
    r"""Counterfactual single-cell expression under perturbation, by conditional flow matching.

    A negative-binomial VAE splits every cell's latent into an intrinsic part (biology) and a technical part
    (batch); a velocity field with varying coefficients,
    :math:`v = v_{base}(z, t, c) + \sum_k \alpha_k(p) \, b_k(z, t, c)`, moves the intrinsic part from control to
    perturbed. Control has :math:`\alpha = 0` exactly.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        In place of ``adata``: that of a data module, :meth:`setup_annbatch`.
    n_latent
        Dimension of the intrinsic latent.
    n_latent_technical
        Dimension of the technical latent.
    n_hidden
        Units per hidden layer of encoder and decoder.
    n_layers
        Hidden layers of the encoder.
    n_basis
        Basis fields of the velocity.
    n_hidden_flow
        Units per hidden layer of the velocity field.
    flow_source
        ``"control"``: the flow starts at control cells. ``"noise"``: it starts at a standard normal, and a cell is
        first taken back to noise by the base flow.
    coupling
        ``"independent"``: sources and targets of stage 2 are paired at random, within their cell type.
        ``"ot"``: by optimal transport, which costs more and predicted no better.
    **module_kwargs
        Further arguments of :class:`~cfmvc_scvi.CFMVCModule`.

    Examples
    --------
    >>> adata = cfmvc_scvi.data.simulate_perturbation()
    >>> CFMVC.setup_anndata(adata)
    >>> model = CFMVC(adata)
    >>> model.train()
    >>> adata.obsm["X_cfmvc"] = model.get_latent_representation()
    >>> predicted = model.predict_perturbation(perturbation="P1")
    """

    @single_precision
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        n_latent: int = 32,
        n_latent_technical: int = 8,
        n_hidden: int = 256,
        n_layers: int = 2,
        n_basis: int = 16,
        n_hidden_flow: int = 128,
        flow_source: Literal["control", "noise"] = "control",
        coupling: Literal["ot", "independent"] = "independent",
        **module_kwargs: Any,
    ) -> None:
        if flow_source not in FLOW_SOURCES:
            raise ValueError(unknown_choice("flow_source", flow_source, FLOW_SOURCES))
        get_coupling(coupling)  # refuses an unknown one
        sizes_given = {"n_latent": n_latent, "n_latent_technical": n_latent_technical, "n_hidden": n_hidden}
        sizes_given |= {"n_layers": n_layers, "n_basis": n_basis, "n_hidden_flow": n_hidden_flow}
        for argument, value in sizes_given.items():
            whole_number(argument, value)
        if adata is None and registry is not None:
            check_registry(registry)
        super().__init__(adata, registry)
        sizes = cast("dict[str, int]", self.summary_stats)
        self.module = self._module_cls(
            n_input=sizes["n_vars"],
            n_batch=sizes["n_batch"],
            n_labels=sizes["n_labels"],
            n_perturbation=self.vocabulary.n_features,
            n_cats_per_cov=self._covariate_levels(),
            n_continuous_cov=sizes.get("n_extra_continuous_covs", 0),
            n_spatial=sizes.get(f"n_{CFMVC_KEYS.SPATIAL_KEY}", 0),
            n_latent=n_latent,
            n_latent_technical=n_latent_technical,
            n_hidden=n_hidden,
            n_layers=n_layers,
            n_basis=n_basis,
            n_hidden_flow=n_hidden_flow,
            flow_source=flow_source,
            panel=self.setup_keys.size_factor_key is not None,
            **module_kwargs,
        )
        self.flow_source = flow_source
        self.coupling = coupling
        self._model_summary_string = (
            f"CFMVC with n_latent: {n_latent}, n_latent_technical: {n_latent_technical}, n_basis: {n_basis}, "
            f"flow_source: {flow_source}, coupling: {coupling}, perturbations: {len(self.vocabulary.names)}"
        )
        self.init_params_ = self._get_init_params(locals())

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # scvi-tools' is annotated as ''
        """What the model is made of, what of it is trained, and its data."""
        sizes = cast("dict[str, int]", self.summary_stats)
        stages = {"autoencoder": self.is_vae_trained_, "flow": self.is_flow_trained_}
        trained = " and ".join(name for name, is_trained in stages.items() if is_trained)
        vocabulary = self.vocabulary
        return (
            f"{self._model_summary_string}\n"
            f"data: {sizes['n_cells']} cells, {sizes['n_vars']} genes, {len(self.batches)} batches, "
            f"{len(self.cell_types)} cell types: {shortened(self.cell_types, 5)}\n"
            f"control: {shortened(vocabulary.control_group, 5)}, perturbations: {shortened(vocabulary.names, 5)}\n"
            f"trained: {trained or 'nothing yet'}"
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        batch_key: Any = AUTO,
        labels_key: Any = AUTO,
        perturbation_key: Any = AUTO,
        control_group: str | Sequence[str] | None = None,
        combination_delimiter: str | None = None,
        dosage_key: str | None = None,
        perturbation_embedding_key: str | None = None,
        spatial_key: Any = AUTO,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        size_factor_key: str | None = None,
        allow_noncounts: bool = False,
        sample_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register an AnnData: say which column plays which part.

        Parameters
        ----------
        adata
            Raw counts of cells (n_cells, n_genes) with labels in ``obs``.
        layer
            Layer that holds the counts; ``None`` takes ``adata.X``.
        batch_key
            Column of ``obs`` with the batch. :data:`~cfmvc_scvi.AUTO` takes ``"batch"`` when it is there, ``None``
            has no batches.
        labels_key
            Column of ``obs`` with the cell type; AUTO takes ``"cell_type"``, or a column such as ``"celltype"`` that
            alone has a usual name.
        perturbation_key
            Column of ``obs`` with the perturbation; AUTO takes ``"perturbation"``, or a column such as ``"condition"``,
            ``"treatment"``, ``"stim"`` or ``"guide"`` that alone has a usual name. Or a key of ``obsm``: a DataFrame
            of 0 and 1 with one column per perturbation, where cells can have several (guides in a screen, say).
        control_group
            Level (or levels) of the perturbation column that is unperturbed. ``None`` takes the one level with a
            usual name, such as ``"control"`` or ``"DMSO"``. Of a matrix in ``obsm``: columns that count as nothing,
            such as non-targeting guides; cells without any perturbation are ``"control"``.
        combination_delimiter
            Splits labels into perturbations given together, in any order; ``None`` never splits. Of a matrix in
            ``obsm``: joins the names of its columns; ``None`` is ``"+"``.
        dosage_key
            Column of ``obs`` with the dose (or time) of the perturbation: a number, or text with one number per
            member, delimited like the labels. Dose 0 is control. The response to doses is learned per perturbation.
        perturbation_embedding_key
            Key of ``adata.uns`` with a vector per perturbation: a DataFrame (perturbation x features) or a dict.
        spatial_key
            Key of ``adata.obsm`` with coordinates; AUTO takes ``"spatial"``.
        categorical_covariate_keys, continuous_covariate_keys
            Further columns of ``obs`` that describe the context: a name, or a list of names.
        size_factor_key
            Column of ``obs`` with each cell's library size, where the genes at hand are a panel; else the row sum.
        allow_noncounts
            Take fractional values, such as normalised or log-transformed ones, with a warning in place of an error. The
            likelihood is then not that of the data.
        sample_key
            Column of ``obs`` with the independent sample: donor, animal, plate. Effects are then means over
            samples, controls are those of the same sample where it has some, and intervals are about further samples
            rather than further cells of these. The networks do not see it. ``None`` takes cells for independent.
        **kwargs
            From scvi-tools alone, where it transfers a setup to other data.

        Warns
        -----
        UserWarning
            Where the data cannot tell a perturbation from something else: confounded with batch or sample, without
            control cells in a cell type, with a single cell; and for cells or genes without counts.

        Raises
        ------
        KeyError
            For a name that is not there; the message lists what is.
        TypeError
            For counts in a container that cannot be read, naming the conversion to call.
        ValueError
            When there is no perturbation column, the control is not clear, values are missing, or the counts are not
            counts.
        """
        registration = Registration.of(
            adata,
            is_new=kwargs.get("source_registry") is None,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            perturbation_key=perturbation_key,
            control_group=control_group,
            combination_delimiter=combination_delimiter,
            dosage_key=dosage_key,
            perturbation_embedding_key=perturbation_embedding_key,
            spatial_key=spatial_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            size_factor_key=size_factor_key,
            allow_noncounts=allow_noncounts,
            sample_key=sample_key,
        )
        setup_method_args = cls._get_setup_method_args(cls=cls, adata=adata, **asdict(registration.keys))
        manager = AnnDataManager(
            fields=registration.fields(),  # pyright: ignore[reportArgumentType]  # annotated as a type variable there
            setup_method_args=setup_method_args,
        )
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _covariate_levels(self) -> list[int]:
        state = self._field_registries.get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
        return [int(n) for n in state.get("n_cats_per_key", [])]

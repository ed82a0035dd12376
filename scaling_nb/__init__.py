"""How big should the model be, how much data should it see, and how sure are we.

Names are loaded when they are first used: a stored study opens without torch or Ray."""
__version__ = "0.1.0"

from importlib import import_module as _import_module

_NAMES = {
    "contracts": "Problem check_problem",
    "flops": "ParamCounts count_params flops_per_token measure_cost mfu transformer_flops",
    "recipes": "LrLaw Recipe Settings resolve",
    "hardware": "Hardware dollars_of_flops find_hardware flops_of_dollars flops_of_hours hours_of_flops",
    "sweep": "Constraints RunSpec SweepPlan nearest_size plan_sweep",
    "records": "RunRecord RunState Storage StorageBusy StorageError attempts_frame open_storage read_runs runs_frame",
    "training": "MockLaw Trainer train_run",
    "cluster": "cluster_nodes find_head head_dashboard start_head start_ray stop_head",
    "decisions": "Limits",
    "scheduling": "Resources Sweep attach run_sweep",
    "tuning": "CoordinateCheck LrTuning coordinate_check fit_lr tune_lr",
    "laws": "ChinchillaLaw CoupledLaw DataConstrainedLaw Form FormLaw IsoFlopParabola KaplanLaw PowerLaw overtrained",
    "fitting": "FitResult FitStatus fit_law fit_power_law",
    "isoflop": "EnvelopeFit IsoFlopFit fit_envelope fit_isoflop",
    "intervals": "bootstrap_fit fit_intervals",
    "yardsticks": "regret regret_band",
    "doubts": "agreement exclusion_path influence leave_future_out window_path",
    "allocation": "Allocation NoAnswer Refusal compute_optimal",
    "choices": "Choice choose inference_optimal overtraining_frame",
    "comparison": "Comparison compare",
    "design": "candidate_points edge_points next_points predict_width simulate",
    "charts": "plot_comparison plot_curves plot_future plot_isoflop plot_isoloss plot_loss plot_lr plot_optimum plot_plan plot_predicted plot_profile plot_regret plot_residuals plot_runs",
    "widgets": "RunView",
    "plan_view": "PlanView",
    "fit_view": "FitView",
    "rounds": "Round adaptive_round edge_round hold_out_round",
    "study": "Study find_optimal load_study train_study",
    "card": "StudyCard study_card",
    "jobs": "Job submit_study",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = list(_MODULE_OF)


def __getattr__(name):
    if name in _MODULE_OF:
        value = globals()[name] = getattr(_import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])

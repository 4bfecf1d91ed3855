//! From operations to something that runs.

use super::descriptor::{Descriptor, check};
use crate::error::{CudaError, Result};
use cudarc::cudnn::{result, sys as dn};
use dn::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Mode,
};

/// Operations, in order, and what they refer to.
#[derive(Default)]
pub(super) struct Graph {
    pub operations: Vec<Descriptor>,
    /// Kept as long as the operations, which refer to them.
    pub parts: Vec<Descriptor>,
}

impl Graph {
    /// Adds an operation and the mode that it refers to.
    pub fn push(&mut self, [operation, mode]: [Descriptor; 2]) {
        self.operations.push(operation);
        self.parts.push(mode);
    }
}

/// What a plan is made for.
pub enum Target {
    /// The device of an open handle.
    Handle(dn::cudnnHandle_t),
    /// A device that is only described: a check on machines without one.
    Described(Descriptor),
}

impl Target {
    /// The device that `json` describes, in cuDNN's own form of device properties.
    pub fn described(json: &str) -> Result<Self> {
        let d = Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?;
        d.set(
            Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
            Type::CUDNN_TYPE_CHAR,
            json.as_bytes(),
        )?;
        Ok(Self::Described(d.finish("device properties")?))
    }
}

/// cuDNN on one stream.
pub(crate) struct Dnn {
    target: Target,
}

// SAFETY: the handle is used under one lock.
unsafe impl Send for Dnn {}

impl Dnn {
    /// Opens cuDNN on the current device; its work goes to `stream`.
    pub fn open(stream: cudarc::driver::sys::CUstream) -> Result<Self> {
        let failed = |call: &str, error: result::CudnnError| CudaError::Dnn {
            call: call.to_owned(),
            message: format!("{error:?}"),
        };
        let handle = result::create_handle().map_err(|e| failed("open", e))?;
        // SAFETY: handle and stream are valid and of the same device.
        unsafe { result::set_stream(handle, stream.cast()) }
            .map_err(|e| failed("set the stream", e))?;
        Ok(Self {
            target: Target::Handle(handle),
        })
    }

    /// What its plans are made for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Runs a plan.
    ///
    /// # Safety
    /// The addresses must be those of tensors with the sizes and types that the plan was made for,
    /// and `workspace` must have its workspace's bytes.
    pub unsafe fn run(&self, plan: &Plan, bindings: &[Binding], workspace: u64) -> Result<()> {
        let Target::Handle(handle) = self.target else {
            return Err(CudaError::Unsupported(
                "a described device runs nothing".into(),
            ));
        };
        let ids: Vec<i64> = bindings.iter().map(|b| b.id).collect();
        let addresses: Vec<u64> = bindings.iter().map(|b| b.address).collect();
        let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        pack.set(
            Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
            Type::CUDNN_TYPE_VOID_PTR,
            &addresses,
        )?
        .int(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &ids)?
        .set(
            Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
            Type::CUDNN_TYPE_VOID_PTR,
            &[workspace],
        )?;
        let pack = pack.finish("a variant pack")?;
        // SAFETY: plan and pack are finalised; the caller vouches for the addresses.
        let status = unsafe { dn::cudnnBackendExecute(handle, plan.plan.raw(), pack.raw()) };
        check(status, || "execute".to_owned())
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        if let Target::Handle(handle) = self.target {
            // SAFETY: opened by `open`, closed once.
            let _ = unsafe { result::destroy_handle(handle) };
        }
    }
}

/// A tensor of a graph and where it is.
#[derive(Clone, Copy)]
pub(crate) struct Binding {
    pub id: i64,
    pub address: u64,
}

/// A graph with an engine.
pub struct Plan {
    plan: Descriptor,
    workspace_bytes: usize,
    engine: i64,
    // The plan refers to them.
    _config: Descriptor,
    _operation_graph: Descriptor,
    _graph: Graph,
}

impl Plan {
    /// Bytes of device memory that it needs while it runs.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    /// Number of its engine, for the record.
    pub fn engine(&self) -> i64 {
        self.engine
    }

    /// The first of the heuristic's engines that takes the graph in at most `workspace_max` bytes.
    pub(super) fn make(target: &Target, graph: Graph, workspace_max: usize) -> Result<Self> {
        let g = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        if let Target::Handle(handle) = target {
            let name = Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE;
            g.set(name, Type::CUDNN_TYPE_HANDLE, &[*handle])?;
        }
        let operations: Vec<_> = graph.operations.iter().map(Descriptor::raw).collect();
        g.set(
            Name::CUDNN_ATTR_OPERATIONGRAPH_OPS,
            Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
            &operations,
        )?;
        let g = g.finish("an operation graph")?;
        let mut why = CudaError::Dnn {
            call: "look for an engine".into(),
            message: "the heuristic knows none".into(),
        };
        for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
            let configs = match engines(target, &g, mode) {
                Ok(configs) => configs,
                Err(error) => {
                    why = error;
                    continue;
                }
            };
            for config in configs {
                match plan_of(target, &config) {
                    Ok((_, bytes)) if bytes > workspace_max => {
                        why = CudaError::Dnn {
                            call: "look for an engine".into(),
                            message: format!("{bytes} bytes of workspace are wanted"),
                        };
                    }
                    Ok((plan, workspace_bytes)) => {
                        let engine = engine_number(&config);
                        return Ok(Self {
                            plan,
                            workspace_bytes,
                            engine,
                            _config: config,
                            _operation_graph: g,
                            _graph: graph,
                        });
                    }
                    Err(error) => why = error,
                }
            }
        }
        Err(why)
    }
}

/// The engine configurations that the heuristic proposes, best first.
fn engines(target: &Target, graph: &Descriptor, mode: Mode) -> Result<Vec<Descriptor>> {
    let h = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
    h.descriptor(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)?;
    h.set(
        Name::CUDNN_ATTR_ENGINEHEUR_MODE,
        Type::CUDNN_TYPE_HEUR_MODE,
        &[mode],
    )?;
    if let Target::Described(device) = target {
        h.descriptor(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device)?;
    }
    let h = h.finish("a heuristic")?;
    let get = |wanted: i64, to: *mut dn::cudnnBackendDescriptor_t| -> Result<i64> {
        let mut count = 0;
        // SAFETY: `to` has room for `wanted` descriptors, which are created.
        let status = unsafe {
            dn::cudnnBackendGetAttribute(
                h.raw(),
                Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
                Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
                wanted,
                &mut count,
                to.cast(),
            )
        };
        check(status, || "ask the heuristic".to_owned())?;
        Ok(count)
    };
    let count = get(0, std::ptr::null_mut())?;
    let mut configs = (0..count)
        .map(|_| Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
        .collect::<Result<Vec<_>>>()?;
    let mut raw: Vec<_> = configs.iter().map(Descriptor::raw).collect();
    let found = get(count, raw.as_mut_ptr())?;
    configs.truncate(found.max(0) as usize);
    Ok(configs)
}

/// A plan and the bytes of its workspace.
fn plan_of(target: &Target, config: &Descriptor) -> Result<(Descriptor, usize)> {
    let p = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
    match target {
        Target::Handle(handle) => {
            let name = Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE;
            p.set(name, Type::CUDNN_TYPE_HANDLE, &[*handle])?;
        }
        Target::Described(device) => {
            p.descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device)?;
        }
    }
    p.descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config)?;
    let p = p.finish("a plan")?;
    let bytes = number(&p, Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
    Ok((p, bytes.max(0) as usize))
}

fn number(d: &Descriptor, name: Name) -> Result<i64> {
    let (mut value, mut count) = (0i64, 0i64);
    // SAFETY: one INT64 is asked for and `value` has room for it.
    let status = unsafe {
        let to = (&raw mut value).cast();
        dn::cudnnBackendGetAttribute(d.raw(), name, Type::CUDNN_TYPE_INT64, 1, &mut count, to)
    };
    check(status, || format!("get {name:?}"))?;
    Ok(value)
}

/// Number of a configuration's engine, or -1.
fn engine_number(config: &Descriptor) -> i64 {
    let look = || -> Result<i64> {
        let engine = Descriptor::new(Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        let (mut raw, mut count) = ([engine.raw()], 0i64);
        // SAFETY: one created descriptor is given to be filled.
        let status = unsafe {
            dn::cudnnBackendGetAttribute(
                config.raw(),
                Name::CUDNN_ATTR_ENGINECFG_ENGINE,
                Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
                1,
                &mut count,
                raw.as_mut_ptr().cast(),
            )
        };
        check(status, || "get the engine".to_owned())?;
        number(&engine, Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)
    };
    look().unwrap_or(-1)
}

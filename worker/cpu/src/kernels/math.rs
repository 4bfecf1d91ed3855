//! Element-wise functions.

use super::isa::Isa;

/// `x = exp(x)`.
pub fn exp(_isa: Isa, x: &mut [f32]) {
    x.iter_mut().for_each(|v| *v = v.exp());
}
/// `x = 1 / (1 + exp(-x))`.
pub fn sigmoid(_isa: Isa, x: &mut [f32]) {
    x.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp()));
}
/// `x = x * sigmoid(x)`.
pub fn silu(_isa: Isa, x: &mut [f32]) {
    x.iter_mut().for_each(|v| *v /= 1.0 + (-*v).exp());
}
/// `x = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`.
pub fn gelu_tanh(_isa: Isa, x: &mut [f32]) {
    x.iter_mut().for_each(|v| {
        let u = 0.797_884_6 * (*v + 0.044715 * *v * *v * *v);
        *v *= 0.5 * (1.0 + u.tanh());
    });
}
/// `x = tanh(x)`.
pub fn tanh(_isa: Isa, x: &mut [f32]) {
    x.iter_mut().for_each(|v| *v = v.tanh());
}

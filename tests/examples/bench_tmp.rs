//! tmp
use glm4v_model::*; use glm4v_train::*; use std::time::Instant;
#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(std::env::var("T").unwrap().parse().unwrap()).build().unwrap().install(run)
}
fn run() {
    let cfg = Glm4vConfig::from_json(&std::fs::read_to_string("configs/models/digits/config.json").unwrap()).unwrap();
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let dev = Backend::Cpu.open().unwrap().autodiff();
    let mut model = initialize(cfg.init(&dev), 0, burn::tensor::DType::F32);
    let samples: Vec<Sample> = (0..32).map(|i| {
        let mut ids: Vec<u32> = (0..22).map(|k| (k*37+i*11)%1100).collect(); ids.push(1150);
        let mut kinds = vec![0u8; 23]; for k in 4..8 { kinds[k]=1; ids[k]=1164; }
        let mut taught = vec![false; 23]; for k in 20..23 { taught[k]=true; }
        Sample::from_parts(ids, &kinds, taught, ((0..16*1176).map(|v| ((v*7919+i as usize*31)%1000) as f32/500.0-1.0).collect(), &[[1,4,4]]), (vec![], &[]))
    }).collect();
    let batch = Batch::collate(&samples, 1150, PaddingSide::Right);
    let targets = Targets::of(&batch);
    let mut opt = AdamW::new(AdamWConfig { betas: [0.9,0.95], eps: 1e-8, weight_decay: 0.01 });
    let mut t = [0f64;4];
    for s in 0..n {
        let t0=Instant::now();
        let l = loss(&model, &batch, &targets).unwrap();
        let t1=Instant::now();
        let g = NamedGradients::take(&model, l.backward());
        let t2=Instant::now();
        let norm = g.norm().unwrap().into_scalar::<f32>() as f64;
        let t3=Instant::now();
        model = opt.step(model, g, 1e-3, (1.0/(norm+1e-6)).min(1.0));
        let t4=Instant::now();
        if s >= 5 { t[0]+=(t1-t0).as_secs_f64(); t[1]+=(t2-t1).as_secs_f64(); t[2]+=(t3-t2).as_secs_f64(); t[3]+=(t4-t3).as_secs_f64(); }
        if s%20==0 { println!("{s} {}", l.into_scalar::<f32>()); }
    }
    println!("forward {:.2} backward {:.2} norm {:.2} adamw {:.2} total {:.2} ms", t[0]*1e3/(n-5) as f64, t[1]*1e3/(n-5) as f64, t[2]*1e3/(n-5) as f64, t[3]*1e3/(n-5) as f64, t.iter().sum::<f64>()*1e3/(n-5) as f64);
}
